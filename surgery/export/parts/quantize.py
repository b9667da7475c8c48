"""The files of quantized parts, each part made when its first file is written."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.export.base import Item
from surgery.export.file_items import Linked
from surgery.export.parts.quantizer import PartQuantizer
from surgery.runtime.manifest import ExportedFile
from surgery.storage.safetensors.header import Progress
from surgery.storage.staging import resume_folder


@dataclass
class QuantizedParts:
    """Knows which file is the last: after that one the work folder is removed.

    Args:
        quantizer: makes them.
    """

    quantizer: PartQuantizer
    _last: tuple[str, str] = ("", "")

    def items(self, part: str, names: Sequence[str]) -> list[Item]:
        """Return the files of a part.

        Args:
            part: name of its folder.
            names: of its files.
        """
        self._last = part, names[-1]
        float32 = self.quantizer.float32.parts[part].items
        return [
            _QuantizedFile(self, name, () if index else float32) for index, name in enumerate(names)
        ]

    def written(self, work: Path, part: str, name: str) -> None:
        """Remove the work folder after the last file."""
        if (part, name) == self._last:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _QuantizedFile:
    """One file; the first of a part answers for the room of its float form.

    What is made of that is smaller, and so makes up for what a part takes while it is made.
    """

    parts: QuantizedParts
    name: str
    float32: Sequence[Item]

    def required_space(self, folder: Path) -> int:
        return sum(item.required_space(folder) for item in self.float32)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        work = resume_folder(folder.parent)
        files = {file.name: file for file in self.parts.quantizer.make(work, folder.name)}
        quantized = work / "made" / folder.name / self.name
        Linked(quantized, self.name, copy=False, checksum=False, hard=True).write(folder, None)
        if progress:
            progress(self.required_space(folder))
        self.parts.written(work, folder.name, self.name)
        return files[self.name]
