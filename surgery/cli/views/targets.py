"""Devices, and every fact about one with its source, for a person or a page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from surgery.cli.views.terminal import out, plain_table, print_table
from surgery.plan.summary import human_bytes

if TYPE_CHECKING:
    from surgery.npu.target import Target

_BYTES: Final = "_bytes"


def print_targets(targets: "Sequence[Target]") -> None:
    """Print one row for each target."""
    table = plain_table("target", "alias", "device", "compiler", words=("device", "compiler"))
    for target in targets:
        cells = (", ".join(target.aliases), target.device, compiler_of(target))
        table.add_row(Text(target.name, "bold"), *cells)
    print_table(table)


def print_target(target: "Target") -> None:
    """Print every fact of a target, and the sources that it names by number."""
    out().print(Text.assemble((target.name, "bold"), f": {target.device}"), soft_wrap=True)
    table = plain_table("fact", "value", "evidence", "source", words=("value",))
    rows = list(fact_rows(target))
    sources = list(dict.fromkeys((source, date) for *_, source, date in rows))
    for fact, value, evidence, source, date in rows:
        table.add_row(fact, value, evidence, f"{1 + sources.index((source, date))}")
    print_table(table)
    for number, (source, date) in enumerate(sources, start=1):
        out().print(f"{number:>3}  {source} ({date})", style="dim", soft_wrap=True)


def compiler_of(target: "Target") -> str:
    """In words whether there is a compiler to ask."""
    return "Qualcomm's, with --prove" if target.compiler == "htp" else "none; tables only"


def fact_rows(target: "Target") -> Iterator[tuple[str, str, str, str, str]]:
    """The cells of every fact, under its dotted key, in the order of the file."""
    for key, fact in _facts(target.model_dump(mode="json"), ""):
        name, value = key.rpartition(".")[2], fact["value"]
        words = human_bytes(int(value)) if name.endswith(_BYTES) else _words(value)
        source = " ".join(fact["source"].split())
        yield key, words, fact["evidence"], source, fact["date"]


def _facts(content: Mapping[str, Any], above: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in content.items():
        if not isinstance(inner, dict):
            continue
        key = f"{above}{name}"
        if "evidence" in inner:
            yield key, inner
        else:
            yield from _facts(inner, f"{key}.")


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
