"""The same graph on the CPU: what the NPU's values are compared with."""

from pathlib import Path

import numpy as np

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.npu.qualcomm.arrays import Arrays


def reference(model: Path, feeds: Arrays) -> Arrays:
    """Run a graph by onnxruntime on the CPU, node by node as it is written.

    Graph optimizations are off: they fuse quantized operators into others that round otherwise.

    Args:
        model: an ONNX file.
        feeds: an array for each of its inputs.

    Returns:
        Its outputs.

    Raises:
        SurgeryError: X105 where it can't be run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        found = session.run(None, dict(feeds))
    except Exception as error:
        raise SurgeryError(diagnostic("X105", name=model.name, reason=first_line(error))) from error
    names = [output.name for output in session.get_outputs()]
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}
