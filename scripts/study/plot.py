"""The plot: learning curves, and right answers against the language that is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.summary import Figure, Row


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw both panels into a PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, trade) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for number, row in enumerate(rows):
        look = {"color": f"C{number % 10}", "label": row.name}
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
        xlabel="text kept on the shared path (% of the base's perplexity)",
        ylabel="right answers (%)",
        title="Answers and language; bars span the seeds",
    )
    trade.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _reach(figure: Figure) -> list[list[float]]:
    """How far the seeds reach below and above the mean, as errorbar takes it."""
    return [[figure.mean - min(figure.values)], [max(figure.values) - figure.mean]]
