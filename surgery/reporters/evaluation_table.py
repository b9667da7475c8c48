"""What an adapter kept and learned, for a person."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from surgery.reporters.terminal import out

if TYPE_CHECKING:
    from surgery.evaluate import Evaluation

_WORDS = {"base": "the base", "shared": "shared path", "text": "text path"}


def print_evaluation(evaluation: "Evaluation") -> None:
    """Print one row for each figure: what it is, on which path, and how much is left."""
    adapter, model = escape(evaluation.adapter), escape(evaluation.model)
    out().print(f"[bold]{adapter}[/] ({evaluation.recipe}) on {model}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("figure", no_wrap=True)
    table.add_column("of", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("retention", justify="right", no_wrap=True)
    retention = evaluation.retention()
    for name, value in evaluation.figures().items():
        kind, _, path = name.partition(".")
        shown = f"{value:.3f}" if kind == "perplexity" else f"{100 * value:.2f} %"
        left = f"{retention[name]:.2f} %" if name in retention else ""
        table.add_row(kind, _WORDS[path], shown, left)
    out().print(table)
    out().print(f"Measured on {evaluation.tokens:,} tokens and {evaluation.answers:,} answers.")
