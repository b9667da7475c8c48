"""`surgery samples`."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: surgery samples samples"


def command(
    folder: Annotated[
        Path, typer.Argument(help="Where to write them; here unless given.", metavar="DIR")
    ] = Path(),
) -> None:
    """Write small files to try the other commands on: pictures, questions, text and a graph."""
    from surgery.data.samples.files import write_samples

    typer.echo("\n".join(write_samples(folder)))
