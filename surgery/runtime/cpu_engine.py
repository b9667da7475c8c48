"""Runs the graphs of an export by onnxruntime on the CPU."""

from pathlib import Path
from typing import Any

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.runtime.prompt_chunk import Arrays


class OnCpu:
    """Runs graphs by onnxruntime on the CPU, each opened when it is first needed.

    Args:
        folder: the export.
        exact: whether each node is computed as it is written; without, onnxruntime may fuse nodes,
            which is faster, and rounds quantized ones otherwise.
    """

    def __init__(self, folder: Path, *, exact: bool = False) -> None:
        self._folder, self._exact = folder, exact
        self._sessions: dict[tuple[str, str], Any] = {}

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        """Run a graph; see `Engine.run`.

        Raises:
            SurgeryError: A615 without onnxruntime.
        """
        session = self._session(part, file)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))

    def _session(self, part: str, file: str) -> Any:
        if (part, file) not in self._sessions:
            for other in [key for key in self._sessions if key[0] == part]:
                del self._sessions[other]  # its prefill is over, and has the same weights
            self._sessions[part, file] = _opened(self._folder / part / file, self._exact)
        return self._sessions[part, file]


def _opened(file: Path, exact: bool) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise SurgeryError(diagnostic("A615")) from error
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
