"""The tokenizer or processor of a model's folder, and whether the model has a row for each id."""

from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.model.meta_device import needs_remote_code
from surgery.model.token_ids import ids_without_rows
from surgery.storage.json_file import read_object

_FILES: Final = (
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "config.json",
)


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the processor of a model's folder; its tokenizer, where the model takes no images.

    Args:
        folder: Folder with its files.
        trust_remote_code: Whether it may be Python code in the folder; False by default.

    Raises:
        SurgeryError: M105 where it is such code, M111 where it can't be loaded.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # each kind of tokenizer misses its files in its own way
        file = next((name for name in _FILES if _names_code(folder / name)), None)
        if file and not trust_remote_code:
            raise SurgeryError(needs_remote_code(str(folder), file)) from error
        raise SurgeryError(
            diagnostic("M111", folder=folder, reason=first_line(error), key="model")
        ) from error


def embedding_rows(model: Any) -> int:
    """Number of rows of the embedding of a transformers model, in PEFT or not."""
    return int(model.get_input_embeddings().weight.shape[0])


def refuse_ids_without_rows(processor: Any, rows: int, folder: Path) -> None:
    """Refuse a tokenizer with ids for which the model has no embedding.

    Args:
        processor: Result of `load_processor`.
        rows: Number of rows of the model's embedding.
        folder: Folder of the processor, for diagnostics.

    Raises:
        SurgeryError: M112.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if ids > rows:
        raise SurgeryError(ids_without_rows(str(folder), ids, rows))


def _names_code(file: Path) -> bool:
    try:
        return "auto_map" in read_object(file)
    except (OSError, ValueError):
        return False
