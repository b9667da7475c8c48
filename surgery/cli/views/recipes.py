"""The packaged recipes for a person."""

from collections.abc import Iterable

from rich.text import Text

from surgery.cli.views.terminal import plain_table, print_table
from surgery.recipe.schema import Recipe


def print_recipes(recipes: Iterable[Recipe]) -> None:
    """Print name, knobs with their defaults, and description of each recipe."""
    table = plain_table("recipe", "knobs", "what it does", words=("knobs", "what it does"))
    for recipe in recipes:
        knobs = " ".join(f"{name}={value}" for name, value in recipe.knobs.items())
        table.add_row(Text(recipe.name, "bold"), knobs, recipe.description)
    print_table(table)
