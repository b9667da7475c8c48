"""What a recipe and its peers cost on a device, for a person."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from surgery.cli.views.terminal import out, print_table
from surgery.plan.summary import human_bytes

if TYPE_CHECKING:
    from surgery.npu.deployment import Deployment, Measured
    from surgery.npu.device_cost import Cost

_SIZES = ("recipe", "base", "storage", "text", "multimodal", "--to qnn", "to check")
_SPEEDS = ("recipe", "base", "load text", "multimodal", "switch", "tok/s text", "multimodal")
_PAPERS = ("of table 9", "storage", "by sum", "memory", "by sum", "tok/s", "bound")


def print_deployment(found: "Deployment") -> None:
    """Print one row for each recipe and kind of base, then the paper's table beside ours."""
    model, target = (found.model, "bold"), (found.target, "bold")
    out().print(Text.assemble(model, " on ", target, f", {found.context:,} tokens"), soft_wrap=True)
    for columns, cells in ((_SIZES, _sizes), (_SPEEDS, _speeds)):
        table = _table(columns)
        for cost in found.costs:
            table.add_row(cost.recipe, cost.base, *cells(cost))
        print_table(table)
    for name, why in found.left_out.items():
        out().print(f"{name} is left out: {why}", style="dim", soft_wrap=True)
    out().print(_notes(found), style="dim", soft_wrap=True)
    out().print("\nThe paper's phone (arXiv 2503.06019, table 9; BlueLM-3B, 2,048 tokens)")
    measured = _table(_PAPERS)
    for row in found.measured:
        measured.add_row(*_paper_cells(row))
    print_table(measured)
    for sentence in found.disagreements:
        out().print(f"- {sentence}", soft_wrap=True)


def _notes(found: "Deployment") -> str:
    bandwidth = f"{found.bandwidth / 1e9:.1f} GB/s" if found.bandwidth else "unknown"
    return (
        "LLM W4A16; vision tower, projector and LoRA W8A16; memory is weights and cache, without "
        "activations. Storage has each weight once; --to qnn is what `surgery export` writes for "
        "the device, with graphs of their own for prompt and answer and embeddings in fp32; "
        "`to check` is the same for the CPU. tok/s is a bound by bandwidth "
        f"({bandwidth}) with a full cache. By arithmetic, not measured."
    )


def _table(names: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for position, name in enumerate(names):
        left = position == 0 or name == "base"
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _sizes(cost: "Cost") -> tuple[str, ...]:
    sizes = (cost.storage, cost.text_memory, cost.multimodal_memory)
    written = (cost.exported.device, cost.exported.reference) if cost.exported else ()
    return (*map(human_bytes, sizes), *(map(human_bytes, written) if written else ("-", "-")))


def _speeds(cost: "Cost") -> tuple[str, ...]:
    speeds = (cost.text_speed, cost.multimodal_speed)
    loads = (cost.text_load, cost.multimodal_load, cost.switch)
    return (*map(human_bytes, loads), *map(_speed, speeds))


def _paper_cells(row: "Measured") -> tuple[str, ...]:
    ours = row.arithmetic
    return (
        row.model,
        human_bytes(round(row.storage)),
        human_bytes(ours.storage),
        human_bytes(round(row.memory)),
        human_bytes(ours.multimodal_memory),
        _speed(row.speed),
        _speed(ours.multimodal_speed),
    )


def _speed(speed: float | None) -> str:
    return "?" if speed is None else f"{speed:.1f}"
