"""Results that took torch to compute, cached for later commands."""

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
    """The cache folder: `$SURGERY_CACHE`, or `surgery` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SURGERY_CACHE") or Path(base) / "surgery")


def cached(
    folder: str, key: object, content_type: type[Content], make: Callable[[], Content]
) -> Content:
    """Return what is cached under a key; compute and cache it on a miss.

    Args:
        folder: Name of a folder inside the cache folder.
        key: All that the content depends on, serializable as JSON.
        content_type: Pydantic model of the content.
        make: Computes the content, where it isn't cached or can't be read.
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
    """Write the cache entry atomically; a cache that can't be written is no error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(file, content.model_dump_json().encode())
