"""Find the files of what `model:` names: a built-in model, a folder, or a hub id.

No torch here. Weights are read only from safetensors; a folder with a config and no weights is
enough to inspect, plan and lint.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line, suggest, suggestion
from surgery.model.hub import from_hub, is_cached, is_hub_id
from surgery.storage.folder_kinds import did_you_mean, kind_of
from surgery.storage.json_file import read_object
from surgery.storage.safetensors.checkpoint import Checkpoint, read_checkpoint

BUILTIN_FOLDER: Final = Path(__file__).parent / "builtin"
BUILTIN: Final = "builtin/"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this disk.

    Args:
        source: Name of the model as the user gave it; a folder as an absolute path.
        folder: Folder with its files.
        revision: Branch, tag or commit on the hub; None for the default branch.
    """

    source: str
    folder: Path
    revision: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether the folder has weights; partly downloaded ones count."""
        suffixes = (".safetensors", ".safetensors.index.json", ".bin", ".incomplete")
        return any(file.name.endswith(suffixes) for file in self.folder.iterdir())

    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            SurgeryError: M104, if it isn't a JSON object.
        """
        try:
            return read_object(self.folder / "config.json")
        except (OSError, ValueError) as error:
            raise SurgeryError(
                diagnostic(
                    "M104.unreadable", source=self.source, reason=first_line(error), key="model"
                )
            ) from error

    def checkpoint(self) -> Checkpoint:
        """The headers of its weights.

        Raises:
            SurgeryError: M102 for a config without weights; see `read_checkpoint` for the rest.
        """
        if not self.has_weights:
            raise SurgeryError(diagnostic("M102", source=self.source, key="model"))
        return read_checkpoint(self.folder)


def builtin_names() -> list[str]:
    """The names of the built-in decoders, with the prefix `builtin/`."""
    return sorted({*_builtin_names()} - {*builtin_towers()})


def builtin_towers() -> list[str]:
    """The names of the built-in vision towers, with the prefix `builtin/`."""
    return [name for name in _builtin_names() if "image_size" in _builtin(name).config()]


def _builtin_names() -> list[str]:
    return sorted(f"{BUILTIN}{p.parent.name}" for p in BUILTIN_FOLDER.glob("*/config.json"))


def find_model(
    source: str | os.PathLike[str], *, revision: str | None = None, weights: bool = False
) -> ModelFiles:
    """Find a model's files, downloading from the hub what isn't on this disk.

    Args:
        source: `builtin/NAME`, a folder, or a hub id such as `Qwen/Qwen2.5-3B`.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        weights: Whether to download weights too; False by default, which fetches one small file.

    Raises:
        SurgeryError: M101 where there is no such model, M103 where the hub doesn't answer.
    """
    source = os.fspath(source)
    if source.startswith(BUILTIN):
        return _builtin(source)
    folder = Path(os.path.expanduser(source))
    if source and os.path.isdir(folder):
        if not (folder / "config.json").is_file():
            raise SurgeryError(_not_a_model(source))
        return ModelFiles(str(folder.resolve()), folder.resolve())
    if not _is_on_hub(source, folder, revision):
        raise SurgeryError(_no_such_model(source))
    found = from_hub(source, revision=revision, weights=weights, alternative=_alternatives(source))
    return ModelFiles(source, found, revision)


def _is_on_hub(source: str, folder: Path, revision: str | None) -> bool:
    """Whether a name is a hub id, and not the misspelled path of a local folder."""
    is_path = source.count("/") > 1 or source.startswith((".", "~", "/")) or "\\" in source
    if is_path or os.path.exists(folder) or not is_hub_id(source):
        return False
    in_known_folder = "/" in source and os.path.isdir(folder.parent)
    return not in_known_folder or is_cached(source, revision)


def _builtin(source: str) -> ModelFiles:
    folder = BUILTIN_FOLDER / source.removeprefix(BUILTIN)
    if source not in _builtin_names():
        raise SurgeryError(_no_such_model(source))
    return ModelFiles(source, folder)


def _alternatives(source: str) -> str:
    """Alternatives to suggest: a folder with a similar name, or the built-in model of its shape."""
    suggestions = [did_you_mean(source)]
    name = source.rpartition("/")[2].lower()
    for alternative in _builtin_names():
        if f"{name}-".startswith(f"{alternative.removeprefix(BUILTIN)}-"):
            state = (
                "is built in"
                if _builtin(alternative).has_weights
                else "has its shape, without weights"
            )
            suggestions.append(f"`{alternative}` {state};")
    return " ".join(filter(None, suggestions))


def _no_such_model(source: str) -> Diagnostic:
    path = Path(os.path.expanduser(source))
    near = suggest(source, _builtin_names())
    if source.startswith(BUILTIN):
        why = "it is neither a built-in name nor a folder here"
    elif os.path.isfile(path):
        why = "it is a file, and a model is the folder with its config.json"
        near = suggestion([str(path.parent)]) if _has_config(path.parent) else near
    else:
        why = "no such folder exists here, and a hub id looks like `Qwen/Qwen2.5-3B`"
        near = did_you_mean(source) or near
    return diagnostic(
        "M101.unknown",
        source=source,
        why=why,
        fix=near or f"built in are {', '.join(builtin_names())}",
        key="model",
    )


def _has_config(folder: Path) -> bool:
    return os.path.isfile(folder / "config.json")


def _not_a_model(source: str) -> Diagnostic:
    folder = Path(os.path.expanduser(source))
    kind = kind_of(folder)
    inside = [f"`{path}`" for path in sorted(folder.iterdir()) if _has_config(path)]
    if kind:
        return diagnostic(
            "M101.other_kind", source=source, kind=kind.what, fix=kind.taken_by, key="model"
        )
    if inside:
        return diagnostic("M101.folder_of_models", source=source, models=inside, key="model")
    return diagnostic("M101.no_config", source=source, key="model")
