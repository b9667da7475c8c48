"""Prove a graph on Qualcomm's compiler and emulator: it compiles, it runs, its values are right.

Compiling alone proves nothing: some graphs compile and then fail, or compute wrong values.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.agreement import agreement
from surgery.npu.qualcomm.arrays import Arrays
from surgery.npu.qualcomm.compiler import compile_and_run
from surgery.npu.qualcomm.cpu_reference import reference
from surgery.npu.qualcomm.model_files import graph_digest, implementation_digest
from surgery.npu.qualcomm.quantize import Scheme, quantize
from surgery.npu.qualcomm.toolchain import Toolchain, toolchain
from surgery.npu.qualcomm.verdict import SCHEMES, Verdict
from surgery.npu.qualcomm.workers.process import LIMIT, is_late
from surgery.npu.qualcomm.workers.task import Task
from surgery.storage.cache import cached
from surgery.storage.disk_errors import io_errors

Progress = Callable[[str], object]


def prove(
    model: Path,
    feeds: Arrays,
    samples: Sequence[Arrays],
    soc: int,
    arch: int,
    schemes: Sequence[Scheme] = SCHEMES,
    *,
    expected: Arrays | None = None,
    progress: Progress = lambda step: None,
    seconds: float = LIMIT,
) -> list[Verdict]:
    """Compile a graph strictly, run it in the emulator, and compare its values, in each scheme.

    fp16 is compared with the float graph, a quantized scheme with the quantized graph on the CPU.
    Verdicts are kept in the cache, by graph, inputs, toolchain, chip and scheme.

    Args:
        model: an ONNX file in float, with static shapes.
        feeds: what it is run on: an array for each input.
        samples: more of them, for the quantizer to find ranges by; `feeds` is always one, and none
            is wanted for fp16 alone. A mask should be no lower than -100: over a range down to the
            least fp32, 16 bits leave nothing of the scores that it is added to.
        soc: number by which the compiler knows the chip.
        arch: version of the NPU's instruction set.
        schemes: which ones.
        expected: what torch computes from `feeds`, by names of outputs; the float graph on the CPU
            computes it where that is None.
        progress: callback; gets each step before it starts.
        seconds: that a step may take.

    Returns:
        A verdict for each scheme.

    Raises:
        SurgeryError: X101 to X103, X105, X107.
    """
    tools, folder = toolchain(), Path(tempfile.gettempdir())
    with io_errors(folder), tempfile.TemporaryDirectory(dir=folder) as scratch:
        proof = _Proof(
            model, feeds, samples, soc, arch, expected, progress, seconds, tools, Path(scratch)
        )
        return [proof.of(scheme) for scheme in schemes]


class _UnsettledError(Exception):
    """A verdict that another try may change: a crash, a lack of memory, a step out of time."""


@dataclass
class _Proof:
    """What the schemes of one graph share; see `prove`."""

    model: Path
    feeds: Arrays
    samples: Sequence[Arrays]
    soc: int
    arch: int
    expected: Arrays | None
    progress: Progress
    limit: float
    tools: Toolchain
    scratch: Path

    def of(self, scheme: Scheme) -> Verdict:
        """Return what is kept, or find it out."""
        try:
            return cached("proofs", self._key(scheme), Verdict, lambda: self._find(scheme))
        except _UnsettledError as unsettled:
            found: Verdict = unsettled.args[0]
            return found

    def _key(self, scheme: Scheme) -> list[object]:
        inputs = [self.feeds, self.expected or {}, *(self.samples if scheme != "fp16" else ())]
        chip = [self.soc, self.arch]
        key = [self._digest, [_digest(i) for i in inputs], str(self.tools), chip, scheme]
        return [*key, implementation_digest()]

    @cached_property
    def _digest(self) -> str:
        return graph_digest(self.model)

    @cached_property
    def _float_outputs(self) -> Arrays:
        return self.expected if self.expected is not None else reference(self.model, self.feeds)

    def _find(self, scheme: Scheme) -> Verdict:
        started, graph = time.perf_counter(), self.model
        if scheme != "fp16":
            self.progress(f"quantize to {scheme}")
            graph = self._quantized(scheme)
        quantized = time.perf_counter() - started
        self.progress(f"compile and run in {scheme}")
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            task = Task(model=graph, folder=Path(folder), soc=self.soc, arch=self.arch)
            answer, found = compile_and_run(task, self.feeds, self.limit)
        verdict = Verdict(
            scheme=scheme,
            toolchain=str(self.tools),
            accepted=answer.accepted,
            refused=answer.refused,
            error=answer.error or answer.run_error,
            agreement=agreement(found, self._expected(graph)) if found else {},
            against_float=agreement(found, self._float_outputs) if found else {},
            context_bytes=answer.context_bytes,
            seconds={
                "quantise": quantized,
                "compile": answer.compile_seconds,
                "run": answer.run_seconds,
            },
            peak_bytes=answer.peak_bytes,
            late=is_late(answer.ended),
        )
        if answer.ended:
            raise _UnsettledError(verdict)
        return verdict

    def _quantized(self, scheme: Scheme) -> Path:
        """Quantize; that it can't be done is a verdict on the graph too."""
        graph, ranges = self.scratch / f"{scheme}.onnx", self.scratch / "ranges.json"
        samples = [self.feeds, *self.samples]
        try:
            quantize(self.model, graph, scheme, samples, ranges=ranges, seconds=self.limit)
        except SurgeryError as error:
            failure = error.diagnostics[0]
            if failure.code != "X106":
                raise
            late = is_late(failure.why)
            failed = Verdict(scheme=scheme, toolchain=str(self.tools), error=failure.why, late=late)
            raise _UnsettledError(failed) from error
        return graph

    def _expected(self, graph: Path) -> Arrays:
        return self._float_outputs if graph == self.model else reference(graph, self.feeds)


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
