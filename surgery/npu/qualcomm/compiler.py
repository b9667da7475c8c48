"""Ask Qualcomm's compiler about graphs, each in a process that may crash without harm."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.npu.qualcomm.arrays import Arrays, read_arrays, write_arrays
from surgery.npu.qualcomm.toolchain import toolchain
from surgery.npu.qualcomm.workers.process import LIMIT, run_process
from surgery.npu.qualcomm.workers.task import Compiled, Task
from surgery.storage.disk_errors import io_errors

_NO_DEVICE: Final = "Failed to create device"


def compile_graph(
    model: Path, soc: int, arch: int, out: Path, *, fp16: bool, seconds: float = LIMIT
) -> Compiled:
    """Compile a graph for one chip, strictly: no node may be left to the CPU.

    Args:
        model: an ONNX file.
        soc: number by which the compiler knows the chip.
        arch: version of the NPU's instruction set.
        out: the compiled file, `NAME.onnx`; its binary becomes `NAME_qnn.bin` next to it. Neither
            is written where the graph is refused.
        fp16: whether the NPU may compute in fp16 what is not quantized.
        seconds: that it may take.

    Returns:
        The answer; a refusal, a crash and a compiler that takes too long are answers too.

    Raises:
        SurgeryError: X101, X102; X103 where the compiler doesn't know the chip.
    """
    toolchain()
    with io_errors(out), tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        task = Task(model=model, folder=Path(scratch), soc=soc, arch=arch, fp16=fp16, name=out.stem)
        answer = run_tasks([task], seconds)[0]
        if answer.accepted:
            for file in (*task.folder.glob(f"{out.stem}*.bin"), task.context):
                os.replace(file, out.with_name(file.name))
    return answer


def emulate(model: Path, feeds: Arrays, soc: int, arch: int, *, fp16: bool) -> Arrays:
    """Compile a graph and run it in the emulator of the NPU.

    Args:
        model: an ONNX file.
        feeds: an array for each of its inputs.
        soc: number by which the compiler knows the chip.
        arch: version of the NPU's instruction set.
        fp16: whether the NPU may compute in fp16 what is not quantized.

    Returns:
        Its outputs.

    Raises:
        SurgeryError: X101, X102, X103; X104 where it doesn't compile or doesn't run.
    """
    toolchain()
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(model=model, folder=Path(scratch), soc=soc, arch=arch, fp16=fp16)
        answer, outputs = compile_and_run(task, feeds)
    if not answer.accepted or answer.run_error:
        raise SurgeryError(_does_not_run(model, answer))
    return outputs


def compile_and_run(task: Task, feeds: Arrays, seconds: float = LIMIT) -> tuple[Compiled, Arrays]:
    """Return the compiler's answer, and what the emulator computed; nothing where it can't.

    Raises:
        SurgeryError: X103.
    """
    write_arrays(task.feeds, feeds)
    answer = run_tasks([task], seconds)[0]
    return answer, read_arrays(task.outputs)


def run_tasks(tasks: Sequence[Task], seconds: float = LIMIT) -> list[Compiled]:
    """Do tasks in as few processes as they allow: one that crashes takes no other along.

    Args:
        tasks: each in an empty folder of its own, but for its feeds.
        seconds: that one may take.

    Returns:
        The answer to each.

    Raises:
        SurgeryError: X103.
    """
    for task in tasks:
        task.request.write_text(task.model_dump_json())
    answers: list[Compiled] = []
    while len(answers) < len(tasks):
        answers += _run_process(tasks[len(answers) :], seconds)
    for task, answer in zip(tasks, answers, strict=True):
        _check_chip(task, answer)
    return answers


def _run_process(tasks: Sequence[Task], seconds: float) -> list[Compiled]:
    """Do as many tasks as one process does; one at which it ends is among them."""
    folders = [str(task.folder) for task in tasks]
    log = tasks[0].folder / "process.txt"
    files = [task.answer for task in tasks]
    ended = run_process("surgery.npu.qualcomm.workers.htp", folders, files, log, seconds)
    done = [Compiled.model_validate_json(f.read_bytes()) for f in files if f.is_file()]
    return [*done, _interrupted(tasks[len(done)], ended)] if ended else done


def _interrupted(task: Task, ended: str) -> Compiled:
    """What is known of a task at which the process ended."""
    if not task.compiled.is_file():
        return Compiled(error=f"the compiler {ended}", ended=ended)
    answer = Compiled.model_validate_json(task.compiled.read_bytes())
    return answer.model_copy(update={"run_error": f"the emulator {ended}", "ended": ended})


def _check_chip(task: Task, answer: Compiled) -> None:
    found = answer.compatibility.split(":")[4:6]
    if _NO_DEVICE not in answer.error and (not found or found == [str(task.arch), str(task.soc)]):
        return
    raise SurgeryError(
        diagnostic(
            "X103",
            soc=task.soc,
            arch=task.arch,
            reason=answer.error or f"it made a binary that says `{answer.compatibility}`",
        )
    )


def _does_not_run(model: Path, answer: Compiled) -> Diagnostic:
    nodes = [f"`{node.node}` ({node.op}): {node.reason}" for node in answer.refused[:3]]
    return diagnostic(
        "X104.compiler",
        name=model.name,
        reason="; ".join(nodes) or answer.error or answer.run_error,
    )
