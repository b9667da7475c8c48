"""The table of the conformance suite, as data and as a page."""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from support.conform import OPERATIONS, Row
from support.model_types import causal_types, seeing_types


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows that an earlier run or another shard left."""
    file = folder / "support.json"
    if not file.exists():
        return {}
    return {
        name: Row(model_type=name, **row)
        for name, row in json.loads(file.read_text())["types"].items()
    }


def write_report(folder: Path, known: dict[str, Row], found: Iterable[Row], seconds: float) -> None:
    """Write support.json and support.md, and print the totals.

    Args:
        folder: of both files.
        known: rows that stay unless found anew; an operation that was not tried anew stays too.
        found: this run's.
        seconds: this run took.
    """
    rows = dict(known)
    for row in found:
        earlier = known.get(row.model_type)
        if earlier and not row.reason:
            row.outcomes = {**earlier.outcomes, **row.outcomes}
        rows[row.model_type] = row
    rows = dict(sorted(rows.items()))
    (folder / "support.json").write_text(_document(rows), encoding="utf-8")
    page = _page(rows)
    (folder / "support.md").write_text(page, encoding="utf-8")
    print("\n".join(_totals(rows)))
    print(f"this run took {seconds:.0f} s")


def _document(rows: dict[str, Row]) -> str:
    types: dict[str, Any] = {}
    for name, row in rows.items():
        types[name] = {k: v for k, v in asdict(row).items() if k != "model_type"}
        types[name] |= {"planned": round(row.planned, 2), "seconds": round(row.seconds, 1)}
    head = {name: version(name) for name in ("transformers", "peft", "torch")}
    return json.dumps({**head, "types": types}, indent=1, ensure_ascii=False) + "\n"


def _page(rows: dict[str, Row]) -> str:
    head = [
        "# Which models",
        "",
        "Every decoder of transformers as a tiny random model, through every operation, from recipe to",
        "`surgery verify`. Written by `make support`.",
        "",
        *_totals(rows),
        "",
        f"transformers {version('transformers')}, peft {version('peft')}, torch {version('torch')}, "
        f"Python {platform.python_version()}.",
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
    for title, types in (("causal", causal_types()), ("image-text", seeing_types())):
        some = [rows[name] for name in types if name in rows]
        runs = [row for row in some if row.outcomes]
        located = sum(bool(row.blocks) for row in some)
        seconds = sum(row.planned for row in some)
        lines.append(
            f"- {title}: {len(some)} types, blocks located in {located}, planned from configs alone in "
            f"{seconds:.0f} s, {len(runs)} run as tiny models"
        )
        lines += [f"  - `{op}`: {_tally(runs, op)}" for op in OPERATIONS]
    return lines


def _tally(rows: list[Row], operation: str) -> str:
    found = [row.outcomes.get(operation, "not tried") for row in rows]
    words = [text.partition(":")[0] for text in found]
    return ", ".join(
        f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words, reverse=True))
    )
