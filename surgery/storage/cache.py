"""What took torch to find out, kept for later commands."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from surgery.storage.atomic_text import replace_bytes

Content = TypeVar("Content", bound=BaseModel)


def cache_folder() -> Path:
    """Where things are kept: `$SURGERY_CACHE`, or `surgery` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SURGERY_CACHE") or Path(base) / "surgery")


def cached(
    folder: str, key: object, content_type: type[Content], make: Callable[[], Content]
) -> Content:
    """Return what is kept under a key; make it and keep it, where it isn't or can't be read.

    Args:
        folder: inside the cache folder.
        key: what it depends on, as JSON takes it.
        content_type: Pydantic model of the content.
        make: makes it anew.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = cache_folder() / folder / f"{name}.json"
    try:
        return content_type.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        content = make()
    _store(file, content)
    return content


def _store(file: Path, content: BaseModel) -> None:
    """Write the cache entry whole or not at all; a cache that can't be written is no error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, content.model_dump_json().encode())
