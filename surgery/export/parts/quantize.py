"""The files of parts that a workshop makes, each part when its first file is written."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.export.base import Item
from surgery.export.file_items import Linked
from surgery.export.parts.quantizer import Workshop
from surgery.runtime.manifest import ExportedFile
from surgery.storage.safetensors.header import Progress
from surgery.storage.staging import resume_folder


@dataclass
class QuantisedParts:
    """Knows which file is the last: with that one the workshop is cleared.

    Args:
        shop: makes them.
    """

    shop: Workshop
    _last: tuple[str, str] = ("", "")

    def items(self, part: str, names: Sequence[str]) -> list[Item]:
        """Return the files of a part.

        Args:
            part: name of its folder.
            names: of its files.
        """
        self._last = part, names[-1]
        floats = self.shop.floats.parts[part].items
        return [_Made(self, name, () if index else floats) for index, name in enumerate(names)]

    def written(self, work: Path, part: str, name: str) -> None:
        """Clear the workshop behind the last file."""
        if (part, name) == self._last:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Made:
    """One file; the first of a part answers for the room of its float form.

    What is made of that is smaller, and so makes up for what a part takes while it is made.
    """

    parts: QuantisedParts
    name: str
    floats: Sequence[Item]

    def room(self, folder: Path) -> int:
        return sum(item.room(folder) for item in self.floats)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        work = resume_folder(folder.parent)
        files = {file.name: file for file in self.parts.shop.make(work, folder.name)}
        made = work / "made" / folder.name / self.name
        Linked(made, self.name, copy=False, checksum=False, hard=True).write(folder, None)
        if progress:
            progress(self.room(folder))
        self.parts.written(work, folder.name, self.name)
        return files[self.name]
