"""What an export holds, for a person."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from surgery.reporters.terminal import out
from surgery.summary import human_bytes

if TYPE_CHECKING:
    from surgery.manifest import Manifest, PartRecord


def print_export(manifest: "Manifest", folder: Path) -> None:
    """Print one row for each part, and what to do with them."""
    head = f"[bold]{escape(manifest.name)}[/] on [bold]{escape(manifest.model)}[/]"
    out().print(f"{head} as {manifest.format}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("part", "is", "paths", "size", "of it linked"):
        table.add_column(name, justify="right" if "it" in name or name == "size" else "left")
    for name, part in manifest.parts.items():
        paths = ", ".join(path for path, parts in manifest.paths.items() if name in parts)
        linked = _linked(part)
        shown = human_bytes(linked) if linked else ""
        table.add_row(f"{name}/", part.kind, paths, human_bytes(part.bytes), shown)
    out().print(table)
    out().print(f"Wrote {folder}", soft_wrap=True)
    if any(file.how == "hard link" for part in manifest.parts.values() for file in part.files):
        out().print("  linked weights are the base's own files: don't write into them", style="dim")
    next_step = f'  next: surgery run {folder} --path text --prompt "…"'
    out().print(next_step, style="dim", soft_wrap=True, markup=False)


def _linked(part: "PartRecord") -> int:
    return sum(file.bytes for file in part.files if file.how in ("hard link", "reflink"))
