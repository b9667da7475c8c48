"""The plot: learning curves, and right answers against the language that is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.summary import Figure, Row


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw both panels into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, trade) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colors = _colors(rows)
    for row in rows:
        look = {"color": colors[row.recipe], "label": row.name}
        curves.plot(*zip(*row.losses, strict=True), linestyle="--" if row.mixed else "-", **look)
        trade.errorbar(
            row.shared.mean,
            row.answers.mean,
            xerr=_reach(row.shared),
            yerr=_reach(row.answers),
            marker="s" if row.mixed else "o",
            **look,
        )
    curves.set(xlabel="step", ylabel="training loss", yscale="log", title="Learning curves")
    trade.set(
        xlabel="text on the shared path: the base's perplexity / the recipe's (%)",
        ylabel="right answers (%)",
        title="Answers and language; bars span the seeds",
    )
    trade.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _colors(rows: Sequence[Row]) -> dict[str, Any]:
    """A color for each recipe; with text mixed in it is the same recipe, dashed and square."""
    from matplotlib import pyplot as plt

    recipes = list(dict.fromkeys(row.recipe for row in rows))
    table = plt.get_cmap("tab10" if len(recipes) <= 10 else "tab20").colors
    return dict(zip(recipes, table, strict=False))


def _reach(figure: Figure) -> list[list[float]]:
    """How far the seeds reach below and above the mean, as errorbar takes it."""
    return [[figure.mean - min(figure.values)], [max(figure.values) - figure.mean]]
