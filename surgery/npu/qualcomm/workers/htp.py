"""The HTP compiler and emulator in this process: does the task of each folder that it is given.

Runs only as a process of its own: the library of the execution provider can be registered once per
process, and it may take the process with it. So onnxruntime is imported at the top. Source of the
options: docs/execution_providers/QNN-ExecutionProvider.md of onnxruntime-qnn 2.7.0.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort
import onnxruntime_qnn as qnn

from surgery.diagnostics.wording import first_line
from surgery.npu.qualcomm.arrays import read_arrays, write_arrays
from surgery.npu.qualcomm.workers.process import peak_bytes
from surgery.npu.qualcomm.workers.task import Compiled, Refused, Task
from surgery.storage.atomic_text import replace_text

PROVIDER: Final = "QNNExecutionProvider"
"""The name under which its library is registered with onnxruntime."""

_WARNINGS: Final = 2
_LOGGED: Final = re.compile(r"\[[WEF]:onnxruntime:[^\]]*\] (?P<text>.+?)(?:\x1b\[m)?$")
_NOISE: Final = (
    "File mapped weights feature",
    "EPContext encryption config",
    "Removing initializer",
    "This session contains graph nodes that are assigned to the default CPU EP",
)


def main(folders: list[str]) -> None:
    """Do the task of each folder, one after the other."""
    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    for folder in folders:
        task = Task.model_validate_json((Path(folder) / "task.json").read_bytes())
        with task.log.open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
            answer = _compile(task)
            if answer.accepted and task.feeds.is_file():
                replace_text(task.compiled, answer.model_dump_json())
                answer = _run(task, answer)
        answer = answer.model_copy(update={"peak_bytes": peak_bytes()})
        replace_text(task.answer, answer.model_dump_json())


def _compile(task: Task) -> Compiled:
    """Compile with nothing left to the CPU; what was refused is in the trace all the same."""
    started, error = time.perf_counter(), ""
    try:
        session = open_session(task.model, task, writes=True)
        if session.get_providers()[0] != PROVIDER:
            error = "onnxruntime put the graph on the CPU"
        del session
    except Exception as caught:
        error = _refusal(caught, task)
    seconds = time.perf_counter() - started
    refused = tuple(_refused(task))
    logged = [] if refused else _logged(task)
    operators, compatibility = _written(task.context)
    complete = set(operators) == {"EPContext"} and _is_for(compatibility, task)
    return Compiled(
        accepted=complete and not error and not refused,
        refused=refused,
        error="" if refused else _informative(error, logged),
        operators=operators,
        compatibility=compatibility,
        context_bytes=sum(file.stat().st_size for file in task.folder.glob(f"{task.name}*.bin")),
        compile_seconds=seconds,
    )


def _run(task: Task, answer: Compiled) -> Compiled:
    """Load the binary as a phone would, and run it in the emulator."""
    started, error = time.perf_counter(), ""
    try:
        session = open_session(task.context, task)
        found = session.run(None, dict(read_arrays(task.feeds)))
        names = [output.name for output in session.get_outputs()]
        write_arrays(task.outputs, dict(zip(names, found, strict=True)))
    except Exception as caught:
        error = _informative(_refusal(caught, task), _logged(task))
    seconds = time.perf_counter() - started
    return answer.model_copy(update={"run_error": error, "run_seconds": seconds})


def open_session(model: Path, task: Task, *, writes: bool = False) -> Any:
    """Open a graph on the NPU alone.

    Args:
        model: the graph, or what it was compiled to.
        task: for which chip, and where what is written goes.
        writes: whether it is compiled into a file.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _WARNINGS
    settings = {"session.disable_cpu_ep_fallback": "1", "session.intra_op.allow_spinning": "0"}
    if writes:
        settings["ep.context_enable"] = "1"
        settings["ep.context_file_path"] = str(task.context)
        settings["ep.context_embed_mode"] = "0"
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    options.add_provider_for_devices(devices[:1], _provider_options(task, traces=writes))
    return ort.InferenceSession(str(model), options, enable_fallback=0)


def _provider_options(task: Task, *, traces: bool) -> dict[str, str]:
    options = {
        "backend_path": qnn.get_qnn_htp_path(),
        "soc_model": str(task.soc),
        "htp_arch": str(task.arch),
        "enable_htp_fp16_precision": str(int(task.fp16)),
        "offload_graph_io_quantization": "0",
        "htp_graph_finalization_optimization_mode": "3",
    }
    if traces:
        options |= {"enable_framework_op_trace": "1", "framework_op_trace_dir": str(task.folder)}
    return options


def _refused(task: Task) -> Iterator[Refused]:
    """Read the nodes that stay on the CPU; the trace is not written where the last step fails."""
    trace = task.folder / "qnn_op_trace.json"
    if not trace.is_file():
        return
    logged = _logged(task)
    for node in json.loads(trace.read_bytes())["unsupported_nodes"]:
        name, reason = node["node_name"], node["reason"]
        about = re.compile(rf"`{re.escape(name)}(_\d+)?`")  # numbered where a name comes again
        more = [about.sub(f"`{name}`", text) for text in logged if about.search(text)]
        more = [text for text in more if text not in reason]
        yield Refused(node=name, op=node["op_type"], reason=" ".join([reason, *more]))


def _written(context: Path) -> tuple[tuple[str, ...], str]:
    """Operators of the compiled file, and what its binary is for."""
    if not context.is_file():
        return (), ""
    model = onnx.load(context, load_external_data=False)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    return (
        tuple(node.op_type for node in model.graph.node),
        notes.get(f"ep_compatibility_info.{PROVIDER}", ""),
    )


def _is_for(compatibility: str, task: Task) -> bool:
    """Whether a binary is for the chip; the compiler takes contradictions without a word."""
    return compatibility.split(":")[4:6] == [str(task.arch), str(task.soc)]


def _informative(error: str, logged: list[str]) -> str:
    """An error and what was logged with it, less what says no more than that it failed."""
    if not error:
        return ""
    more = [text for text in logged if error not in text and text not in error]
    return ": ".join(text for text in (error, *more) if not text.startswith(_NOISE)) or error


def _logged(task: Task) -> list[str]:
    """What the compiler logged as a warning or an error, each sentence once."""
    lines = task.log.read_text(errors="replace").splitlines()
    found = (match["text"].strip() for line in lines if (match := _LOGGED.search(line)))
    return list(dict.fromkeys(text for text in found if not text.startswith(_NOISE)))


def _refusal(error: Exception, task: Task) -> str:
    text = first_line(error).replace(str(task.model), task.model.name)
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)


if __name__ == "__main__":
    main(sys.argv[1:])
