"""`surgery diff`."""

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

EPILOG = "Example: surgery diff genieblue_skip genieblue_post model=builtin/qwen2.5-3b"


def command(
    first: Annotated[str, typer.Argument(metavar="A", help="A recipe.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another recipe.")],
    overrides: Overrides = None,
    output_format: Format = "human",
    revision: Revision = None,
    allow_env: AllowEnv = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Compare what two recipes would do to one model; overrides go to both."""
    from surgery.cli.views.diff import print_difference
    from surgery.plan.diff import difference_document
    from surgery.plan.planner import plan_recipe
    from surgery.plan.serialization import to_json
    from surgery.recipe.loading import load_recipe

    arguments = with_revision(overrides, revision)
    plans = [
        plan_recipe(
            load_recipe(recipe, arguments, allow_env=allow_env), trust_remote_code=trust_remote_code
        )
        for recipe in (first, second)
    ]
    if output_format == "json":
        typer.echo(to_json(difference_document(*plans)), nl=False)
    else:
        print_difference(*plans)
