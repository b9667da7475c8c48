"""The checked inputs of a stage: rows, learning rates and arguments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery.data.collator import Collator
from surgery.data.encoder import Encoder
from surgery.data.file_reader import DataFile
from surgery.data.mixture import Mixture, mix
from surgery.data.rows import Rows
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.plan.planner import Plan
from surgery.plan.planner import PlannedStage as Trained
from surgery.recipe.training_schema import Stage
from surgery.training.arguments import training_arguments
from surgery.training.distributed import wants_sharding
from surgery.training.learning_rates import learning_rates
from surgery.training.trainer_needs import named_start, refuse_lacking


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Args:
        name: Name of the stage.
        steps: Number of optimizer steps.
        parameters: Number of trained parameters.
        skipped: Number of bad records that were left out, on the main process.
        bad: Warnings about the first bad record of each file.
        losses: Losses of the first and the last line of the log; empty without one.
    """

    name: str
    steps: int
    parameters: int
    skipped: int
    bad: tuple[Diagnostic, ...]
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class PreparedStage:
    """A stage that was checked and can begin.

    Args:
        name: Name of the stage.
        stage: Settings of the stage.
        rates: Peak learning rate of each parameter that trains, by its name in memory.
        parameters: Number of parameters that train.
        rows: Rows to train on, in order.
        collator: Collator of the rows.
        arguments: TrainingArguments of transformers.
    """

    name: str
    stage: Stage
    rates: dict[str, float]
    parameters: int
    rows: Mixture
    collator: Collator
    arguments: Any

    @contextmanager
    def named_errors(self, is_under_way: Callable[[], bool]) -> Iterator[None]:
        """Report what is wrong with a row or with the settings of the Trainer while it trains.

        Args:
            is_under_way: Function that says whether a step is done.

        Raises:
            SurgeryError: D for a row, wherever it was encoded; T119 for the settings.
        """
        with self.rows.named_errors(), named_start(self.stage, self.name, is_under_way):
            yield

    def result(self) -> StageResult:
        """The result, once the stage has ended."""
        first = (item for source in self.rows.sources for item in source.bad[:1])
        bad = tuple(replace(item, severity="warning") for item in first)
        steps = len(self.rows) // self.stage.batch
        return StageResult(self.name, steps, self.parameters, self.rows.skipped, bad)

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """Warnings about data that is not learned from."""
        return tuple(item for source in self.rows.sources for item in source.notes)


def prepare_stage(
    plan: Plan, trained: Trained, model: Any, processor: Any, folder: Path
) -> PreparedStage:
    """Check a stage.

    Args:
        plan: The applied plan.
        trained: What trains in the stage.
        model: The model that `apply_plan` returned.
        processor: Processor of the base, or its tokenizer.
        folder: Folder of the stage's checkpoints.

    Raises:
        SurgeryError: T102 to T105, T108, T111, T112, T117 and T118 for its settings, D for its
            data.
    """
    stage = plan.recipe.stages[trained.name]
    rates = learning_rates(plan, trained, stage, model)
    parameters = sum(p.numel() for name, p in model.named_parameters() if name in rates)
    seed = plan.recipe.seed if stage.seed is None else stage.seed
    encoder = Encoder(processor, stage.length)
    collator = _collator(plan, stage, trained.name, encoder)
    files = (DataFile(source, stage.bad_records) for source in stage.sources.values())
    rows = mix([Rows(file, encoder, stage.bad_records) for file in files], stage, seed)
    steps = len(rows) // stage.batch
    arguments = training_arguments(stage, trained.name, folder, steps, seed)
    refuse_lacking(stage, trained.name, arguments, model)
    return PreparedStage(trained.name, stage, rates, parameters, rows, collator, arguments)


def _collator(plan: Plan, stage: Stage, name: str, encoder: Encoder) -> Collator:
    by_path = stage.text_rows == "text"
    if by_path and not plan.has_text_path:
        raise SurgeryError(plan.recipe.locate([diagnostic("T108", key=f"stages.{name}.text_rows")]))
    if stage.packing and (by_path or plan.learners()):
        raise SurgeryError(plan.recipe.locate([_no_packing(name, by_path)]))
    if by_path and wants_sharding():
        raise SurgeryError(plan.recipe.locate([diagnostic("T112", key=f"stages.{name}.text_rows")]))
    token, routed = encoder.image_token, plan.is_routed
    return Collator(encoder.pad_token_id, stage.packing, by_path, token, routed)


def _no_packing(stage: str, by_path: bool) -> Diagnostic:
    key = f"stages.{stage}.packing"
    return diagnostic("T111.paths" if by_path else "T111.learners", key=key)
