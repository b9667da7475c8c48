"""`surgery train`."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.arguments import (
    AllowEnv,
    Format,
    Overrides,
    RemoteCode,
    Revision,
    with_revision,
)

EPILOG = (
    "Example: surgery train genieblue_skip data=conversations.jsonl steps=1000 --out my-adapter"
)


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE|DIR", help="A recipe, or an adapter to train on.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; trained/RECIPE unless given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a training for this folder ended.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again, and replace what surgery wrote.")
    ] = False,
    output_format: Format = "human",
    revision: Revision = None,
    allow_env: AllowEnv = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train the stages of a recipe, and save the adapter; a key of a stage means every stage."""
    from surgery.cli.views.diagnostics import print_diagnostics
    from surgery.cli.views.train import print_trained, training_progress
    from surgery.plan.serialization import to_json
    from surgery.recipe.loading import load_recipe
    from surgery.storage.file_names import PLAN_FILE, RECIPE_FILE
    from surgery.training.distributed import this_process
    from surgery.training.model_card import training_document
    from surgery.training.train import train_adapter, train_recipe

    given = Path(recipe)
    is_adapter = os.path.isfile(given / PLAN_FILE)
    source = given / RECIPE_FILE if is_adapter else recipe
    arguments = with_revision(overrides, revision)
    composed = load_recipe(source, arguments, allow_env=allow_env)
    folder = out or Path("trained") / (given.name if is_adapter else composed.name)
    train = partial(train_adapter, given) if is_adapter else train_recipe
    with training_progress() as progress:
        results = train(
            composed,
            folder,
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            progress=progress,
            warn=print_diagnostics,
        )
    if not this_process().is_main_process:
        return
    if output_format == "json":
        typer.echo(to_json(training_document(folder, results)), nl=False)
    else:
        print_trained(results, folder)
