"""The page docs/reference/npu-matrix.md."""

from collections.abc import Iterator, Mapping, Sequence

from npu_matrix.ask import Row

_LONGEST = 240


def page(found: Mapping[str, Sequence[Row]], run: str) -> str:
    """Return the page.

    Args:
        found: rows by what a group of them is about.
        run: which compiler, for which chip, when.
    """
    lines = [*_head(found, run)]
    for about, rows in found.items():
        lines += ["", f"## {about}", "", "| case | operator | verdict | error | reason | rule |"]
        lines += ["|---|---|---|---|---|---|", *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _head(found: Mapping[str, Sequence[Row]], run: str) -> Iterator[str]:
    every = [row.found for rows in found.values() for row in rows]
    counts = ", ".join(f"{every.count(v)} {v}" for v in ("accepted", "rejected", "wrong"))
    yield "# What Qualcomm's compiler takes"
    yield ""
    yield f"{len(every)} small graphs: {counts}. {run}."
    yield "Written by `PYTHONPATH=scripts python -m npu_matrix`; a test asks them all again."
    yield ""
    yield "*accepted*: the whole graph compiles, and the emulator's numbers agree with the CPU's"
    yield "(cosine of at least 0.9999). *rejected*: it doesn't compile. *wrong*: it compiles, and"
    yield "then fails or computes other numbers, so compiling alone proves nothing. *error* is the"
    yield "greatest absolute difference. *rule* is what lint says without the compiler. No phone"
    yield "was involved."


def _line(row: Row) -> str:
    error = "" if row.error is None else f"{row.error:.2g}"
    rules = ", ".join(row.rules)
    cells = (row.case.name, row.case.operator, row.found, error, row.reason, rules)
    return "| " + " | ".join(_cell(text) for text in cells) + " |"


def _cell(text: str) -> str:
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return short.replace("|", "\\|").replace("\n", " ")
