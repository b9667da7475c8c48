"""The log of a training: a CSV file, a progress callback, and a stop at a loss that is NaN."""

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.atomic_text import replace_text

LOG = "log.csv"


@dataclass(frozen=True)
class LogLine:
    """One line of the log.

    Args:
        stage: Name of the stage.
        step: Number of optimizer steps so far.
        steps: Number of optimizer steps of the stage.
        loss: Mean loss of the steps since the last line, in nats per label.
        rate: Learning rate of the first group.
        grad_norm: Gradient norm before clipping.
        tokens: Number of tokens so far, over all processes.
        tokens_per_second: Speed since this process began the stage, in tokens per second.
        seconds_left: Estimated rest of the stage at that speed, in seconds.
    """

    stage: str
    step: int
    steps: int
    loss: float
    rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    seconds_left: float


_NAMES: Final = tuple(field.name for field in fields(LogLine))
LogCallback = Callable[[LogLine], None]


class TrainingLog(TrainerCallback):  # type: ignore[misc]
    """Writes `log.csv` and calls a progress callback.

    Args:
        file: Path of the CSV file; lines of earlier stages are kept.
        stage: Name of the stage.
        progress: Callback with each line, on the main process.
    """

    def __init__(self, file: Path, stage: str, progress: LogCallback | None) -> None:
        self._file, self._stage, self._progress = file, stage, progress or (lambda logged: None)
        self._begun, self._step, self._tokens = 0.0, 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove lines of steps that will be repeated."""
        self._begun, self._step = time.perf_counter(), state.global_step
        self._tokens = state.num_input_tokens_seen
        if state.is_world_process_zero:
            rows = [row for row in _rows(self._file) if self._stays(row, state.global_step)]
            _write(self._file, rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step and each checkpoint: the mean of a line ends where a run may end."""
        control.should_log |= control.should_save or state.global_step >= state.max_steps

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a line.

        Raises:
            SurgeryError: T110, if the loss is not finite.
        """
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise SurgeryError(diagnostic("T110", stage=self._stage, step=state.global_step))
        if state.is_world_process_zero:
            logged = self._logged(state, logs)
            with self._file.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream, lineterminator="\n").writerow(asdict(logged).values())
            self._progress(logged)

    def _logged(self, state: Any, logs: dict[str, Any]) -> LogLine:
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        done = max(state.global_step - self._step, 1)
        return LogLine(
            stage=self._stage,
            step=state.global_step,
            steps=state.max_steps,
            loss=logs["loss"],
            rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm", math.nan),
            tokens=state.num_input_tokens_seen,
            tokens_per_second=(state.num_input_tokens_seen - self._tokens) / seconds,
            seconds_left=seconds / done * (state.max_steps - state.global_step),
        )

    def _stays(self, row: dict[str, str], step: int) -> bool:
        return row["stage"] != self._stage or int(row["step"]) <= step


def last_lines(file: Path) -> dict[str, dict[str, float]]:
    """Last step of each stage in a log, and its loss, in the order of the stages."""
    rows = {row["stage"]: row for row in _rows(file)}
    return {
        stage: {"steps": int(row["step"]), "loss": float(row["loss"])}
        for stage, row in rows.items()
    }


def end_losses(file: Path) -> dict[str, tuple[float, ...]]:
    """Losses of the first and the last line of each stage in a log; one if there is one line."""
    losses: dict[str, list[float]] = {}
    for row in _rows(file):
        losses.setdefault(row["stage"], []).append(float(row["loss"]))
    return {name: (*found[:1], *found[1:][-1:]) for name, found in losses.items()}


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if _is_complete(row)]


def _is_complete(row: dict[str, str]) -> bool:
    """Whether a line was written completely, which that of a killed training may not be."""
    return set(row) == {*_NAMES} and all(row.values()) and row["step"].isdigit()


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _NAMES, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(file, text.getvalue())
