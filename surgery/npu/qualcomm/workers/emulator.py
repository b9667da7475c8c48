"""Run compiled graphs in the emulator, as they are asked for; arguments: SOC ARCH FOLDER.

Reads pairs of a compiled graph's path and its inputs from standard input, pickled, and answers each
with an error and the outputs. Runs only as a process of its own, so onnxruntime is imported at the
top. Both ends are this package; nothing of others is unpickled.
"""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort
import onnxruntime_qnn as qnn

from surgery.diagnostics.wording import first_line
from surgery.npu.qualcomm.workers.htp import PROVIDER, open_session
from surgery.npu.qualcomm.workers.task import Task


def main(soc: str, arch: str, folder: str) -> None:
    """Answer until standard input ends; a graph stays open once it was used."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the libraries print
    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    sessions: dict[str, Any] = {}
    while True:
        try:
            path, feeds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        task = Task(model=Path(path), folder=Path(folder), soc=int(soc), arch=int(arch))
        pickle.dump(_answer(sessions, task, feeds), answers)
        answers.flush()


def _answer(sessions: dict[str, Any], task: Task, feeds: Any) -> tuple[str, dict[str, Any]]:
    name = str(task.model)
    try:
        session = sessions.get(name) or open_session(task.model, task)
        sessions[name] = session
        names = [output.name for output in session.get_outputs()]
        return "", dict(zip(names, session.run(None, feeds), strict=True))
    except Exception as error:
        return first_line(error), {}


if __name__ == "__main__":
    main(*sys.argv[1:])
