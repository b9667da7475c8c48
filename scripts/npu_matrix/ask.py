"""Ask the compiler about every case."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from npu_matrix.case import Case, Known
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.lint.onnx.reader import subject_of
from surgery.lint.rule_runner import lint_graph
from surgery.npu.qualcomm.agreement import agreement
from surgery.npu.qualcomm.arrays import Arrays, read_arrays, write_arrays
from surgery.npu.qualcomm.compiler import run_tasks
from surgery.npu.qualcomm.cpu_reference import reference
from surgery.npu.qualcomm.workers.task import Compiled, Task
from surgery.npu.target import load_target

SOC, ARCH = 69, 79
"""Snapdragon 8 Elite."""
TARGET = "snapdragon-8-elite"
"""The same, as lint names it."""
LIMIT = 60.0
"""Seconds for one case."""


@dataclass(frozen=True)
class Row:
    """What the compiler made of one case.

    Args:
        case: the graph.
        found: the verdict.
        error: greatest absolute difference from the CPU, of all outputs; None where it didn't run.
        reason: the compiler's own words, where it has any.
        rules: code and name of those of ours that call it an error.
    """

    case: Case
    found: Known
    error: float | None
    reason: str
    rules: tuple[str, ...] = ()


def rows(cases: Sequence[Case], soc: int = SOC, arch: int = ARCH) -> list[Row]:
    """Compile and run every case for a chip; one that crashes takes no other along."""
    with tempfile.TemporaryDirectory() as scratch:
        tasks = [_task(case, Path(scratch) / f"{i:03}", soc, arch) for i, case in enumerate(cases)]
        answers = run_tasks(tasks, LIMIT)
        found = [_row(*each) for each in zip(cases, tasks, answers, strict=True)]
        return [replace(row, rules=errors_in(t.model)) for row, t in zip(found, tasks, strict=True)]


def errors_in(model: Path, target: str = TARGET) -> tuple[str, ...]:
    """Return the rules, as `L201 dynamic-dimension`, that find an error in a graph."""
    found = lint_graph(subject_of(model), load_target(target))
    said = (f"{one.code} {one.rule}" for one in found if one.severity == "error")
    return tuple(dict.fromkeys(said))


def _task(case: Case, folder: Path, soc: int, arch: int) -> Task:
    folder.mkdir()
    task = Task(model=folder / "case.onnx", folder=folder, soc=soc, arch=arch)
    onnx.save(case.model(), task.model)
    write_arrays(task.feeds, case.inputs())
    return task


def _row(case: Case, task: Task, answer: Compiled) -> Row:
    if not answer.accepted:
        reasons = [f"{node.op}: {node.reason}" for node in answer.refused]
        return Row(case, "rejected", None, "; ".join(reasons) or answer.error)
    if answer.run_error:
        return Row(case, "wrong", None, answer.run_error)
    found = agreement(read_arrays(task.outputs), _wanted(case, task))
    right = all(each.is_enough for each in found.values())
    error = max(each.error for each in found.values())
    return Row(case, "accepted" if right else "wrong", error, "")


def _wanted(case: Case, task: Task) -> Arrays:
    try:
        return reference(task.model, case.inputs())
    except SurgeryError as error:
        raise ValueError(f"{case.name}: {error}") from error
