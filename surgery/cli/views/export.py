"""What an export holds, for a person."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from surgery.cli.views.terminal import err, out, plain_table, print_table
from surgery.plan.summary import human_bytes

if TYPE_CHECKING:
    from surgery.runtime.manifest import Manifest


def print_copied(size: int) -> None:
    """Say before an export what its copies of the base's weights cost, if there are any."""
    if size:
        said = f"copies {size:,} bytes ({human_bytes(size)}) of the base's weights"
        err().print(f"{said}; --link would share them where the disk can", soft_wrap=True)


def print_export(manifest: "Manifest", folder: Path) -> None:
    """Print one row for each part, and what to do with them."""
    name, model = (manifest.name, "bold"), (manifest.model, "bold")
    head = Text.assemble(name, " on ", model, f" as {manifest.format}")
    out().print(head, soft_wrap=True)
    print_table(_table(manifest))
    out().print(f"Wrote {folder}", soft_wrap=True)
    if any(file.how == "hard link" for part in manifest.parts.values() for file in part.files):
        out().print("  linked weights are the base's own files: don't write into them", style="dim")
    next_step = f'  next: surgery run {folder} --path text --prompt "…"'
    out().print(next_step, style="dim", soft_wrap=True)


def _table(manifest: "Manifest") -> Table:
    """Columns that are empty for all parts are left out."""
    cells = {
        name: [column(manifest, part) for part in manifest.parts]
        for name, column in _COLUMNS.items()
    }
    shown = {name: column for name, column in cells.items() if any(column)}
    numbers = [name for name in shown if name not in _WORDS]
    table = plain_table(*shown, numbers=numbers, words=_WORDS[1:])
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def _paths(manifest: "Manifest", part: str) -> str:
    return ", ".join(path for path, parts in manifest.paths.items() if part in parts)


def _linked(manifest: "Manifest", part: str) -> str:
    files = manifest.parts[part].files
    size = sum(file.bytes for file in files if file.how in ("hard link", "reflink"))
    return human_bytes(size) if size else ""


def _least_cosine(manifest: "Manifest", part: str) -> str:
    """Of all outputs of its graphs with float's, on all paths."""
    graphs = (file.graph for file in manifest.parts[part].files if file.graph)
    cosines = [x for graph in graphs for found in graph.cosine.values() for x in found.values()]
    return f"{min(cosines):.4f}" if cosines else ""


def _most_lost(manifest: "Manifest", part: str) -> str:
    """Of the matrices of an adapter that was cut to a rank."""
    lost = [x for file in manifest.parts[part].files for x in file.lost.values()]
    return f"{max(lost):.4f}" if lost else ""


_COLUMNS: Final[dict[str, Callable[["Manifest", str], str]]] = {
    "part": lambda _, part: f"{part}/",
    "is": lambda manifest, part: manifest.parts[part].kind,
    "paths": _paths,
    "size": lambda manifest, part: human_bytes(manifest.parts[part].bytes),
    "of it linked": _linked,
    "cosine with fp32": _least_cosine,
    "most lost to rank": _most_lost,
}
_WORDS: Final = ("part", "is", "paths")
