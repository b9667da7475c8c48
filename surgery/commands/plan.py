"""`surgery plan`."""

from pathlib import Path
from typing import Annotated

import typer

from surgery.commands._arguments import (
    Format,
    Overrides,
    Recipe,
    RemoteCode,
    Revision,
    with_revision,
)

EPILOG = "Example: surgery plan genieblue_skip model=Qwen/Qwen2.5-3B placement=post rank=16"


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    output_format: Format = "human",
    out: Annotated[Path | None, typer.Option(help="Save the plan as JSON here.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Show the memory that training takes, too.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what a recipe would change in a model, to the byte. No weight is touched."""
    from surgery.compose import load_recipe
    from surgery.plan import plan_recipe
    from surgery.shorthand import stage_words
    from surgery.sidefiles import saved_plan, weight_bytes
    from surgery.staging import io_errors

    words = with_revision(overrides, revision)
    composed = load_recipe(recipe, stage_words(recipe, words) if train else words)
    plan = plan_recipe(composed, trust_remote_code=trust_remote_code)
    if output_format == "json" or out:
        document = saved_plan(plan)
    if out:
        with io_errors(out):
            out.write_text(document, encoding="utf-8")
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
