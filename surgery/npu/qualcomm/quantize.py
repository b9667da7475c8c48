"""Quantize a graph as the NPU computes it: QDQ, activations of 16 bits, weights of 8 or 4.

By onnxruntime's own quantizer with its settings for QNN, but for two. Weights are symmetric: its
default for int4 has a zero point, which the NPU compiles and computes wrong. And each column of a
matrix has a scale of its own, which AIMET finds where it is asked to.
Source: onnxruntime.quantization.execution_providers.qnn of onnxruntime 1.31.1.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.arrays import BRANCH, Arrays, write_arrays
from surgery.npu.qualcomm.model_files import copied
from surgery.npu.qualcomm.workers.process import LIMIT, run_process
from surgery.storage.disk_errors import io_errors

Scheme = Literal["fp16", "w8a16", "w4a16"]
"""Bits of weights and activations; fp16 quantizes nothing."""

Quantizer = Literal["onnxruntime", "aimet"]
"""Who finds the scales of weights; onnxruntime writes the graph either way."""

_AIMET_FACTOR: Final = 6
"""AIMET may take as many times what another step may: it took half a minute to a minute and a half
for 33 to 77 million weights on two cores."""


@dataclass(frozen=True)
class Branch:
    """What is added alongside a graph's own matrices along one path alone, such as LoRA's A and B.

    Args:
        inputs: of the graph, with which it begins; it ends before it is added.
        samples: inputs that show the ranges within it.
    """

    inputs: Sequence[str]
    samples: Sequence[Arrays]


def quantize(
    model: Path,
    out: Path,
    scheme: Scheme,
    samples: Sequence[Arrays],
    *,
    branch: Branch | None = None,
    ranges: Path | None = None,
    quantizer: Quantizer = "onnxruntime",
    scales: Path | None = None,
    seconds: float = LIMIT,
) -> None:
    """Write the quantized graph, in processes of their own.

    Inputs and outputs stay float, the key-value cache's too; each column of a matrix has its scale.

    Args:
        model: an ONNX file in float.
        out: the quantized one; its weights become `OUT.data` next to it.
        scheme: w8a16 or w4a16.
        samples: inputs that show the ranges of the activations; at least one.
        branch: what has ranges of other samples. Where the samples have zeros for it, the graph's
            values without it are those of the same graph that has none, to the bit.
        ranges: where these are kept for the next scheme; samples count only where it is not there.
        quantizer: who finds the scales of weights. onnxruntime takes a column's greatest weight,
            AIMET what changes its products with the samples least.
        scales: where AIMET's are kept for the next graph of the same weights; samples count for
            them only where it is not there.
        seconds: that a step may take, and AIMET six times.

    Raises:
        SurgeryError: X106 where it can't be quantized, X107 where it can't be read.
    """
    with io_errors(out), tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        _write_samples(folder, samples)
        if branch:
            (folder / f"{BRANCH}.json").write_text(json.dumps([*branch.inputs]))
            _write_samples(folder / BRANCH, branch.samples)
        written, done = folder / "made" / out.name, folder / "done"
        written.parent.mkdir()
        source = copied(model, folder / "model")  # the quantizer writes next to the graph
        log, found = folder / "log.txt", scales or folder / "scales"
        if quantizer == "aimet" and not found.is_file():
            arguments = [str(source), scheme, str(folder), str(found)]
            most = seconds * _AIMET_FACTOR
            ended = run_process("surgery.npu.qualcomm.workers.aimet", arguments, [found], log, most)
            if ended:
                raise SurgeryError(diagnostic("X106", name=model.name, why=f"AIMET {ended}"))
        paths = [ranges or folder / "ranges.json", found, done]
        arguments = [str(source), str(written), scheme, *map(str, paths)]
        ended = run_process(
            "surgery.npu.qualcomm.workers.quantize", arguments, [done], log, seconds
        )
        if ended:
            raise SurgeryError(
                diagnostic("X106", name=model.name, why=f"onnxruntime's quantizer {ended}")
            )
        for file in sorted(written.parent.iterdir(), key=lambda file: file == written):
            os.replace(file, out.with_name(file.name))


def _write_samples(folder: Path, samples: Sequence[Arrays]) -> None:
    folder.mkdir(exist_ok=True)
    for index, sample in enumerate(samples):
        write_arrays(folder / f"{index:04}.npz", sample)
