"""The table of the conformance suite, as data and as a page."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from support.conform import OPERATIONS, Row
from support.model_types import causal_types, multimodal_types

_HEAD: Final = """# Which models

Every decoder of transformers as a tiny random model, through every operation, from recipe to
`surgery verify`. An operation is done right (`yes`), is refused by the plan before anything is
written, with the reason, or fails a check. A model that does not run here by itself says why in its
first column. `make support` writes this page.
"""


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows that an earlier run or another shard left."""
    file = folder / "support.json"
    if not file.exists():
        return {}
    return {
        name: Row(model_type=name, **row)
        for name, row in json.loads(file.read_text())["types"].items()
    }


class Report:
    """support.json and support.md, written again with each row.

    Args:
        folder: of both files.
        known: rows that stay unless found again, as an operation that is not tried again stays.
    """

    def __init__(self, folder: Path, known: dict[str, Row]) -> None:
        self._folder = folder
        self._rows = dict(known)

    def add(self, row: Row) -> None:
        """Take a row in and write both files."""
        earlier = self._rows.get(row.model_type)
        if earlier and not row.reason:
            row.outcomes = {**earlier.outcomes, **row.outcomes}
        self._rows = dict(sorted({**self._rows, row.model_type: row}.items()))
        (self._folder / "support.json").write_text(_document(self._rows), encoding="utf-8")
        (self._folder / "support.md").write_text(_page(self._rows), encoding="utf-8")

    def totals(self) -> list[str]:
        """How many types of each kind, and how each operation went."""
        return _totals(self._rows)


def _document(rows: dict[str, Row]) -> str:
    types: dict[str, Any] = {}
    for name, row in rows.items():
        types[name] = {k: v for k, v in asdict(row).items() if k != "model_type"}
        types[name] |= {"planned": round(row.planned, 2), "seconds": round(row.seconds, 1)}
    head = {name: version(name) for name in ("transformers", "peft", "torch")}
    return json.dumps({**head, "types": types}, indent=1, ensure_ascii=False) + "\n"


def _page(rows: dict[str, Row]) -> str:
    versions = (f"{name} {version(name)}" for name in ("transformers", "peft", "torch"))
    python = f"Python {platform.python_version()}"
    head = [
        _HEAD,
        *_totals(rows),
        "",
        f"{', '.join(versions)}, {python}.",
        "",
        f"| type | blocks | {' | '.join(OPERATIONS)} |",
        f"|---|---|{'---|' * len(OPERATIONS)}",
    ]
    return "\n".join([*head, *map(_line, rows.values())]) + "\n"


def _line(row: Row) -> str:
    blocks = f"`{row.blocks}`" if row.blocks else "none found"
    if row.reason:
        cells = [_cell(row.reason)] + [""] * (len(OPERATIONS) - 1)
    else:
        cells = [_cell(row.outcomes.get(operation, "not tried")) for operation in OPERATIONS]
    return f"| {row.model_type} | {blocks} | {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _totals(rows: dict[str, Row]) -> list[str]:
    lines = []
    for title, types in (("causal", causal_types()), ("image-text", multimodal_types())):
        some = [rows[name] for name in types if name in rows]
        runs = [row for row in some if row.outcomes]
        located = sum(bool(row.blocks) for row in some)
        seconds = sum(row.planned for row in some)
        lines.append(
            f"- {title}: {len(some)} types, blocks located in {located}, {len(runs)} run as tiny "
            f"models; all planned from configs alone in {seconds:.0f} s"
        )
        lines += [f"  - `{op}`: {_tally(runs, op)}" for op in OPERATIONS]
    return lines


def _tally(rows: list[Row], operation: str) -> str:
    found = [row.outcomes.get(operation, "not tried") for row in rows]
    words = [text.partition(":")[0] for text in found]
    return ", ".join(
        f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words, reverse=True))
    )
