"""The number of ids of a tokenizer, from its files alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from surgery.diagnostics.catalog import diagnostic
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
    found = diagnostic("M112", source=source, largest=ids - 1, rows=rows, key="model")
    return replace(found, severity=severity)


def _count(file: Path) -> int:
    try:
        content = read_object(file)
        vocabulary = content["model"]["vocab"]
        own = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        ids: list[Any] = [*own, *(token["id"] for token in content.get("added_tokens", ()))]
        return int(max(ids, default=-1)) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
