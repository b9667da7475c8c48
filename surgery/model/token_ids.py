"""The number of ids of a tokenizer, from its files alone."""

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from surgery.diagnostics.diagnostic import Diagnostic, Severity
from surgery.storage.cache import cached
from surgery.storage.json_file import read_object

_FILE: Final = "tokenizer.json"
_FORMAT: Final = "1"


class _Ids(BaseModel):
    count: int


def token_ids(folder: Path) -> int:
    """Return the largest id of a model's tokenizer plus one; 0 where its files don't tell.

    A large tokenizer takes a tenth of a second to read, so the result is cached by the file's
    size and modification time.

    Args:
        folder: Folder of the model.
    """
    file = folder / _FILE
    try:
        status = file.stat()
    except OSError:
        return 0
    key = (_FORMAT, str(file.resolve()), status.st_size, status.st_mtime_ns)
    return cached("token_ids", key, _Ids, lambda: _Ids(count=_count(file))).count


def ids_without_rows(source: str, ids: int, rows: int, severity: Severity = "error") -> Diagnostic:
    """The diagnostic for a tokenizer with more ids than the embedding has rows."""
    return Diagnostic(
        code="M112",
        what=f"the tokenizer of `{source}` gives ids up to {ids - 1:,}, and its embedding has "
        f"{rows:,} rows",
        why="a token without a row ends in an IndexError, in the middle of a training perhaps",
        fix="add rows once and save: `model.resize_token_embeddings(len(tokenizer))`; or take the "
        "tokenizer of this checkpoint",
        key="model",
        severity=severity,
    )


def _count(file: Path) -> int:
    try:
        content = read_object(file)
        vocabulary = content["model"]["vocab"]
        own = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        ids: list[Any] = [*own, *(token["id"] for token in content.get("added_tokens", ()))]
        return int(max(ids, default=-1)) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
