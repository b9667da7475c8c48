"""Models from the Hugging Face hub, without retries where it doesn't answer.

The hub's client tries six times over half a minute where there is no network, so it is used only
after a first request was answered; otherwise only its cache is.
"""

from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import named_line

_SIDE_FILES: Final = ("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*")
_WEIGHT_FILES: Final = ("*.safetensors", "*.safetensors.index.json")
_TIMEOUT_SECONDS: Final = 5.0  # seconds until the hub must have answered


def is_hub_id(source: str) -> bool:
    """Whether a name can be a hub id at all."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def is_cached(source: str, revision: str | None) -> bool:
    """Whether the config of a hub id is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str)


def from_hub(source: str, *, revision: str | None, weights: bool, alternative: str) -> Path:
    """Return the folder of a hub id's files, downloading what isn't cached.

    Args:
        source: Hub id.
        revision: Branch, tag or commit; None for the default branch.
        weights: Whether to download weights too; otherwise only config.json.
        alternative: Another model to suggest as a fix; may be empty.

    Raises:
        SurgeryError: M103, within seconds where the hub doesn't answer.
    """
    offline = _offline_reason()
    try:
        folder = _fetched(source, revision, weights, local_files_only=bool(offline))
    except Exception as error:  # the hub client has some twenty error types
        raise SurgeryError(
            _failed(source, revision, offline or _hub_error(error), alternative)
        ) from error
    if offline and weights and not any(folder.glob("*.safetensors")):
        raise SurgeryError(_failed(source, revision, offline, alternative))
    return folder


def _fetched(source: str, revision: str | None, weights: bool, **how: Any) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if weights:
        patterns = [*_SIDE_FILES, *_WEIGHT_FILES]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, **how))
    return Path(hf_hub_download(source, "config.json", revision=revision, **how)).parent


def _offline_reason() -> tuple[str, str] | None:
    """Why the hub doesn't answer, and what to do; None where it does."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "it isn't cached, and HF_HUB_OFFLINE forbids to ask", "unset HF_HUB_OFFLINE"
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception:  # of httpx, of a proxy, of TLS
        return f"it isn't cached, and {constants.ENDPOINT} doesn't answer", "check the network"
    return None


def _hub_error(error: Exception) -> tuple[str, str]:
    """What the hub answered, and what to do."""
    return named_line(error), "check the name, `hf auth login` for a gated model"


def _failed(
    source: str, revision: str | None, cause: tuple[str, str], alternative: str
) -> Diagnostic:
    at = f" at revision `{revision}`" if revision else ""
    why, fix = cause
    fixes = (alternative, f"{fix}, or name a folder with the checkpoint")
    return diagnostic(
        "M103", source=source, at=at, why=why, fix=" ".join(filter(None, fixes)), key="model"
    )
