"""`surgery assemble`."""

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.arguments import AllowEnv, Format, Overrides, Recipe, Revision, with_revision

EPILOG = (
    "Example: surgery assemble sighted model=Qwen/Qwen2.5-3B "
    "vision=google/siglip-so400m-patch14-384 tiles=16 --out my-model"
)


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; assembled/RECIPE unless given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that surgery wrote before.")
    ] = False,
    allow_env: AllowEnv = False,
    output_format: Format = "human",
    revision: Revision = None,
) -> None:
    """Make a vision-language model of a decoder, a vision tower and a projector, disk to disk."""
    from surgery.cli.views.assemble import print_assembled, print_assembly
    from surgery.cli.views.progress import byte_progress
    from surgery.plan.serialization import to_json
    from surgery.recipe.loading import load_recipe
    from surgery.vision.assemble import prepare_assembly

    composed = load_recipe(recipe, with_revision(overrides, revision), allow_env=allow_env)
    assembly = prepare_assembly(composed)
    folder = out or Path("assembled") / composed.name
    if output_format == "human":
        print_assembly(assembly)
    with byte_progress(f"writing {folder}", assembly.size) as progress:
        assembly.write_folder(folder, overwrite=overwrite, progress=progress)
    if output_format == "json":
        typer.echo(to_json(assembly.document(folder)), nl=False)
    else:
        print_assembled(folder)
