"""How an adapter was trained, as a section of its model card and as a JSON document."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.distribution import own_version
from surgery.plan.planner import Plan
from surgery.plan.serialization import FORMAT_VERSION, diagnostic_document
from surgery.recipe.training_schema import Stage
from surgery.runtime.manifest import installed_versions
from surgery.storage.file_names import CARD_FILE
from surgery.training.log import LOG
from surgery.training.stage import StageResult

_COLUMNS: Final = ("stage", "trains", "data", "steps", "rows a step", "peak rate", "loss")


def add_training(folder: Path, plan: Plan, results: Sequence[StageResult]) -> None:
    """Append the section to the model card of an adapter folder.

    Args:
        folder: Path of a folder with a card.
        plan: The trained plan.
        results: Result of each stage, in order.
    """
    with (folder / CARD_FILE).open("a", encoding="utf-8") as card:
        card.write(f"\n{training_section(plan, results)}")


def training_section(plan: Plan, results: Sequence[StageResult]) -> str:
    """Return the section: data, steps, learning rate and loss of each stage, seed and versions."""
    made = installed_versions("torch", "transformers", "peft", "accelerate")
    versions = ", ".join(f"{name} {version}" for name, version in made.items())
    stages = plan.recipe.stages
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    lines += [_row(_cells(stages[result.name], result, plan)) for result in results]
    return (
        "## How it was trained\n\n"
        + "\n".join(lines)
        + f"\n\nSeed {plan.recipe.seed}; rates, schedules and all else are in `recipe.yaml`, every "
        f"logged step is in `{LOG}`. Loss is in nats per learned token, of the first and the last "
        f"logged step. Made by {versions}.\n"
    )


def training_document(folder: Path, results: Iterable[StageResult]) -> dict[str, Any]:
    """The JSON document of `surgery train --format json`: location, and how each stage ended."""
    return {
        "format_version": FORMAT_VERSION,
        "surgery": own_version(),
        "folder": str(folder),
        "stages": [_stage_document(result) for result in results],
    }


def _stage_document(result: StageResult) -> dict[str, Any]:
    names = ("name", "steps", "parameters", "skipped", "losses")
    diagnostics = [diagnostic_document(diagnostic) for diagnostic in result.bad]
    return {**{name: getattr(result, name) for name in names}, "diagnostics": diagnostics}


def _cells(stage: Stage, result: StageResult, plan: Plan) -> tuple[str, ...]:
    trains = ", ".join(stage.train or plan.recipe.train)
    left_out = f" ({result.skipped:,} bad records left out)" if result.skipped else ""
    data = ", ".join(f"`{Path(source.file).name}`" for source in stage.sources.values())
    loss = " to ".join(f"{value:.4f}" for value in result.losses)
    settings = (f"{stage.batch}", f"{stage.rate:g}", loss)
    return result.name, trains, f"{data}{left_out}", f"{result.steps:,}", *settings


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
