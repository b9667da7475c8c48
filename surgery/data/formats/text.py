"""Language without questions: `{"text": …}`, all of which is learned."""

from pathlib import Path
from typing import Any

from surgery.data.base import Record, RecordForm, RecordLocation, bad_form


class TextForm(RecordForm):
    """Text under `text`."""

    key = "text"
    used = frozenset({key})

    def read(self, content: dict[str, Any], location: RecordLocation, images: Path) -> Record:
        """See `RecordForm.read`."""
        if not isinstance(content["text"], str) or not content["text"].strip():
            bad_form(location, "`text` is empty or not text")
        return Record(location, text=content["text"])
