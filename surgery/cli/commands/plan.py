"""`surgery plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.arguments import (
    AllowEnv,
    Format,
    Overrides,
    Recipe,
    RemoteCode,
    Revision,
    with_revision,
)

if TYPE_CHECKING:
    from surgery.plan.planner import Plan

EPILOG = "Example: surgery plan genieblue_skip model=Qwen/Qwen2.5-3B placement=post rank=16"


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    output_format: Format = "human",
    out: Annotated[Path | None, typer.Option(help="Save the plan as JSON here.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Show the memory that training takes, too.")
    ] = False,
    deploy: Annotated[
        bool,
        typer.Option("--deploy", help="Show what it costs on a device, compared with its peers."),
    ] = False,
    target: Annotated[str, typer.Option(help="The device for --deploy.")] = "snapdragon",
    context: Annotated[
        int, typer.Option(help="Tokens of the key-value cache for --deploy.", min=1)
    ] = 2048,
    revision: Revision = None,
    allow_env: AllowEnv = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what a recipe would change in a model, to the byte. No weight is touched."""
    from surgery.adapter.side_files import saved_plan, weight_bytes, write_plan
    from surgery.plan.planner import plan_recipe
    from surgery.recipe.loading import load_recipe

    arguments = with_revision(overrides, revision)
    composed = load_recipe(recipe, arguments, allow_env=allow_env)
    plan = plan_recipe(composed, trust_remote_code=trust_remote_code)
    if output_format == "json" or out:
        document = saved_plan(plan)
    if out:
        write_plan(out, document, plan)
    if deploy:
        _show_deployment(plan, target, context, output_format)
        return
    if output_format == "json":
        typer.echo(document, nl=False)
        return
    from surgery.cli.views.diagnostics import print_diagnostics
    from surgery.cli.views.plan.table import print_plan

    print_plan(plan, weight_bytes(plan))
    print_diagnostics(plan.notes)
    if train:
        from surgery.cli.views.plan.memory import print_memory
        from surgery.training.memory_estimate import training_memory

        print_memory(training_memory(plan))


def _show_deployment(plan: "Plan", target: str, context: int, output_format: str) -> None:
    from surgery.npu.deployment import deployment
    from surgery.npu.target import load_target

    found = deployment(plan, load_target(target), context)
    if output_format == "json":
        from surgery.plan.serialization import to_json

        typer.echo(to_json(found.document()), nl=False)
        return
    from surgery.cli.views.plan.deployment import print_deployment

    print_deployment(found)
