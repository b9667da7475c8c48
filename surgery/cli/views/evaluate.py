"""What an adapter kept and learned, for a person."""

from typing import TYPE_CHECKING

from rich.text import Text

from surgery.cli.views.terminal import out, plain_table, print_table
from surgery.diagnostics.wording import counted

if TYPE_CHECKING:
    from surgery.evaluation.evaluate import Evaluation

_WORDS = {"base": "the base", "shared": "shared path", "text": "text path"}


def print_evaluation(evaluation: "Evaluation") -> None:
    """Print one row for each figure: what it is, on which path, and how much is left."""
    made = f" ({evaluation.recipe}) on {evaluation.model}"
    out().print(Text.assemble((evaluation.adapter, "bold"), made), soft_wrap=True)
    numbers = ("value", "retention")
    table = plain_table("figure", "of", *numbers, numbers=numbers)
    retention = evaluation.retention()
    for name, value in evaluation.figures().items():
        kind, _, path = name.partition(".")
        shown = f"{value:.3f}" if kind == "perplexity" else f"{100 * value:.2f} %"
        left = f"{retention[name]:.2f} %" if name in retention else ""
        table.add_row(kind, _WORDS[path], shown, left)
    print_table(table)
    tokens, answers = counted(evaluation.tokens, "token"), counted(evaluation.answers, "answer")
    out().print(f"Measured on {tokens} and {answers}.")
