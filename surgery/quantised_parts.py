"""Files of parts that are quantised and compiled, each graph when its first file is written."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.exported_files import Linked
from surgery.exporter import Item
from surgery.header import Progress
from surgery.manifest import ExportedFile
from surgery.staging import kept_beside
from surgery.workshop import Workshop, files_of_graph


@dataclass
class QuantisedParts:
    """Knows which file is the last: with that one the workshop is cleared.

    Args:
        shop: makes them.
    """

    shop: Workshop
    _last: tuple[str, str] = ("", "")

    def items(self, part: str, graphs: Sequence[str]) -> list[Item]:
        """Return the files of a part.

        Args:
            part: name of its folder.
            graphs: names of its graphs in float, such as `decode.onnx`.
        """
        names = [(graph, name) for graph in graphs for name in files_of_graph(graph)]
        self._last = part, names[-1][1]
        floats = self.shop.floats.parts[part].items
        return [
            _CompiledFile(self, graph, name, () if position else floats)
            for position, (graph, name) in enumerate(names)
        ]

    def written(self, work: Path, part: str, name: str) -> None:
        """Clear the workshop behind the last file."""
        if (part, name) == self._last:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _CompiledFile:
    """One file of a compiled graph; the first of a part answers for the room of its float form."""

    parts: QuantisedParts
    graph: str
    name: str
    floats: Sequence[Item]

    def room(self, folder: Path) -> int:
        return 2 * sum(item.room(folder) for item in self.floats)  # the quantiser has a copy

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        work = kept_beside(folder.parent)
        record = self.parts.shop.make(work, folder.name, self.graph)
        made = work / "made" / folder.name / self.name
        linked = Linked(made, self.name, copy=False, checksum=True).write(folder, None)
        if progress:
            progress(self.room(folder))
        self.parts.written(work, folder.name, self.name)
        graph = record if self.name == self.graph else None
        return linked.model_copy(update={"how": "written", "graph": graph})
