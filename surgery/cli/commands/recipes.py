"""`surgery recipes list|show|copy|schema`."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from surgery.cli.arguments import Format

group = typer.Typer(
    help="List, show and copy the packaged recipes; print the JSON Schema.", no_args_is_help=True
)
_SCHEMA_LINE: Final = "# yaml-language-server: $schema="
_Name = Annotated[str, typer.Argument(help="A packaged recipe, such as genieblue_skip.")]


@group.command("list", epilog="Example: surgery recipes list")
def list_recipes(output_format: Format = "human") -> None:
    """List the packaged recipes with what each one does."""
    from surgery.cli.views.recipes import print_recipes
    from surgery.recipe.loading import load_recipe
    from surgery.recipe.recipe_file import packaged_recipes

    recipes = [load_recipe(name) for name in packaged_recipes()]
    if output_format == "json":
        from surgery.plan.serialization import to_json

        content = {r.name: {"description": r.description, "knobs": r.knobs} for r in recipes}
        typer.echo(to_json(content), nl=False)
        return
    print_recipes(recipes)


@group.command(epilog="Example: surgery recipes show lora")
def show(name: _Name) -> None:
    """Print a recipe as it is written."""
    from surgery.recipe.recipe_file import find_recipe

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@group.command(epilog="Example: surgery recipes copy genieblue_skip mine.yaml")
def copy(
    name: _Name,
    to: Annotated[
        Path | None, typer.Argument(help="A new file or a folder; here unless given.")
    ] = None,
) -> None:
    """Copy a recipe to start your own from; it still starts from the packaged base."""
    from surgery.recipe.recipe_file import find_recipe
    from surgery.storage.atomic_text import create_text

    source = find_recipe(name)
    target = to or Path()
    target = target / source.name if os.path.isdir(target) else target
    create_text(target, _for_editors(source, target.parent))
    typer.echo(f"wrote {target}; try: surgery plan {target}")


def _for_editors(source: Path, folder: Path) -> str:
    """The text of a recipe, without a line that would tell editors of a schema that isn't there."""
    text = source.read_text(encoding="utf-8")
    first, _, rest = text.partition("\n")
    named = first.removeprefix(_SCHEMA_LINE)
    if named == first or "://" in named or (folder / named.strip()).is_file():
        return text
    return rest


@group.command(epilog="Example: surgery recipes schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON Schema by which an editor completes a recipe."""
    from surgery.plan.serialization import to_json
    from surgery.recipe.schema import recipe_schema

    typer.echo(to_json(recipe_schema()), nl=False)
