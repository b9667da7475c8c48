"""The packaged recipes for a person."""

from collections.abc import Iterable

from rich.table import Table

from surgery.recipe import Recipe
from surgery.reporters.terminal import out


def print_recipes(recipes: Iterable[Recipe]) -> None:
    """Print name, knobs with their defaults, and description of each recipe."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("recipe", "knobs", "what it does"):
        table.add_column(column)
    for recipe in recipes:
        knobs = " ".join(f"{name}={value}" for name, value in recipe.knobs.items())
        table.add_row(f"[bold]{recipe.name}[/]", knobs, recipe.description)
    out().print(table)
