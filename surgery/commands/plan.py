"""`surgery plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.commands._arguments import (
    AllowEnv,
    Format,
    Overrides,
    Recipe,
    RemoteCode,
    Revision,
    with_revision,
)

if TYPE_CHECKING:
    from surgery.plan import Plan

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
        bool, typer.Option("--deploy", help="Show what it costs on a device, beside its peers.")
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
    from surgery.compose import load_recipe
    from surgery.plan import plan_recipe
    from surgery.sidefiles import save_plan, saved_plan, weight_bytes

    words = with_revision(overrides, revision)
    composed = load_recipe(recipe, words, allow_env=allow_env)
    plan = plan_recipe(composed, trust_remote_code=trust_remote_code)
    if output_format == "json" or out:
        document = saved_plan(plan)
    if out:
        save_plan(out, document, plan)
    if deploy:
        _show_deployment(plan, target, context, output_format)
        return
    if output_format == "json":
        typer.echo(document, nl=False)
        return
    from surgery.reporters.diagnostics import print_diagnostics
    from surgery.reporters.plan_table import print_plan

    print_plan(plan, weight_bytes(plan))
    print_diagnostics(plan.notes)
    if train:
        from surgery.memory import training_memory
        from surgery.reporters.memory_table import print_memory

        print_memory(training_memory(plan))


def _show_deployment(plan: "Plan", target: str, context: int, output_format: str) -> None:
    from surgery.deploy import deployment
    from surgery.target import load_target

    found = deployment(plan, load_target(target), context)
    if output_format == "json":
        from surgery.document import to_json

        typer.echo(to_json(found.document()), nl=False)
        return
    from surgery.reporters.deploy_table import print_deployment

    print_deployment(found)
