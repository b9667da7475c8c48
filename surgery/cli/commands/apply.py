"""`surgery apply`."""

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

EPILOG = "Example: surgery apply recipes/genieblue_skip.yaml model=Qwen/Qwen2.5-3B --out my-adapter"


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; adapters/RECIPE unless given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that surgery wrote before.")
    ] = False,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Let the fingerprint cover every byte of the base.")
    ] = False,
    output_format: Format = "human",
    revision: Revision = None,
    allow_env: AllowEnv = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Make an adapter folder from a recipe, or from a plan.json, disk to disk."""
    from surgery.adapter.folder import write_adapter
    from surgery.adapter.side_files import weight_bytes
    from surgery.cli.views.plan.table import print_written
    from surgery.cli.views.progress import byte_progress
    from surgery.storage.file_names import PLAN_FILE
    from surgery.storage.inputs import Input

    plan = _plan(recipe, with_revision(overrides, revision), allow_env, trust_remote_code)
    folder = out or Path("adapters") / plan.recipe.name
    inputs = [Input(Path(recipe), "the plan")] if _is_plan(recipe) else []
    with byte_progress(f"writing {folder}", weight_bytes(plan)) as progress:
        write_adapter(
            plan,
            folder,
            checksum=checksum,
            overwrite=overwrite,
            inputs=inputs,
            progress=progress,
        )
    if output_format == "json":
        typer.echo((folder / PLAN_FILE).read_text(encoding="utf-8"), nl=False)
    else:
        print_written(plan, folder)


def _is_plan(recipe: str) -> bool:
    return recipe.endswith(".json")


def _plan(recipe: str, overrides: list[str], allow_env: bool, trust_remote_code: bool) -> "Plan":
    from surgery.adapter.folder import load_plan
    from surgery.diagnostics.catalog import diagnostic
    from surgery.diagnostics.diagnostic import SurgeryError
    from surgery.plan.planner import plan_recipe
    from surgery.recipe.loading import load_recipe

    if not _is_plan(recipe):
        composed = load_recipe(recipe, overrides, allow_env=allow_env)
        return plan_recipe(composed, weights=True, trust_remote_code=trust_remote_code)
    if overrides:
        raise SurgeryError(diagnostic("P210.overrides", override=overrides[0]))
    return load_plan(Path(recipe))
