"""The difference of two plans for a person."""

from rich.text import Text

from surgery.cli.views.terminal import out, plain_table, print_table
from surgery.plan.diff import difference_document
from surgery.plan.planner import Plan


def print_difference(first: Plan, second: Plan) -> None:
    """Print the blocks that differ and both counts, or that nothing differs."""
    document = difference_document(first, second)
    names = document["recipes"]
    sides = (f"- {names[0]}", f"+ {names[1]}")
    table = plain_table("block", *sides, words=sides)
    for row in document["blocks"]:
        table.add_row(
            str(row["block"]), Text(row["first"] or "", "red"), Text(row["second"] or "", "green")
        )
    if document["blocks"]:
        print_table(table)
    for name, counts in zip(names, document["parameters"], strict=True):
        out().print(
            f"{name}: +{counts['added']:,} added, {counts['trainable']:,} trainable", soft_wrap=True
        )
    if not document["blocks"]:
        out().print(f"No block differs on {document['model']}.", soft_wrap=True)
