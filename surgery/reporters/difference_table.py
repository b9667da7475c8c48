"""The difference of two plans for a person."""

from rich.table import Table

from surgery.difference import difference_document
from surgery.plan import Plan
from surgery.reporters.terminal import out


def print_difference(first: Plan, second: Plan) -> None:
    """Print the blocks that differ and both counts, or that nothing differs."""
    document = difference_document(first, second)
    names = document["recipes"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("block", f"- {names[0]}", f"+ {names[1]}"):
        table.add_column(column)
    for row in document["blocks"]:
        table.add_row(
            str(row["block"]), f"[red]{row['first'] or ''}[/]", f"[green]{row['second'] or ''}[/]"
        )
    if document["blocks"]:
        out().print(table)
    for name, counts in zip(names, document["parameters"], strict=True):
        out().print(
            f"{name}: +{counts['added']:,} added, {counts['trainable']:,} trainable", soft_wrap=True
        )
    if not document["blocks"]:
        out().print(f"No block differs on {document['model']}.", soft_wrap=True)
