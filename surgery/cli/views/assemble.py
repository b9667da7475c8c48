"""An assembled model for a person: what it is made of, and what to do with it."""

from pathlib import Path

from rich.text import Text

from surgery.cli.views.terminal import out
from surgery.diagnostics.wording import counted
from surgery.plan.summary import human_bytes
from surgery.vision.assemble import Assembly


def print_assembly(assembly: Assembly) -> None:
    """Say what a model is assembled of, and how large it will be."""
    made, console = assembly.description, out()
    head = Text.assemble((assembly.source, "bold"), f", {made['projector']}")
    console.print(head, soft_wrap=True)
    console.print(
        f"  {counted(made['tokens_a_tile'], 'token')} a tile, "
        f"{counted(made['tiles'], 'tile')} at most, "
        f"`{made['image_token']}` (token {made['image_token_id']}) stands for an image",
        soft_wrap=True,
    )
    console.print(f"  {human_bytes(assembly.size)} of weights", soft_wrap=True)


def print_assembled(folder: Path) -> None:
    """Say what was written and what to do with it."""
    out().print(f"Wrote {folder}", soft_wrap=True)
    out().print(f"  next: surgery apply genieblue_skip model={folder}", style="dim", soft_wrap=True)
