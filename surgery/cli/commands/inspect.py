"""`surgery inspect`."""

from typing import Annotated

import typer

from surgery.cli.arguments import Format, RemoteCode, Revision

EPILOG = "Example: surgery inspect builtin/tiny-qwen2"


def command(
    model: Annotated[str, typer.Argument(help="builtin/NAME, a folder, or a hub id.")],
    output_format: Format = "human",
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Draw the anatomy of a model: its blocks, their matrices, and what is tied."""
    from surgery.model.reader import read_anatomy

    anatomy = read_anatomy(model, revision=revision, trust_remote_code=trust_remote_code)
    if output_format == "json":
        typer.echo(anatomy.model_dump_json(indent=1))
        return
    from surgery.cli.views.inspect import print_anatomy

    print_anatomy(anatomy)
