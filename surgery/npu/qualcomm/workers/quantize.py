"""Quantize in this process; arguments: MODEL OUT SCHEME RANGES SCALES DONE.

Runs only as a process of its own, since it holds a graph several times over; so onnxruntime is
imported at the top. The samples are next to DONE, which is written last; those of a branch in a
folder of their own, with a file of its inputs. SCALES is there where AIMET has found them.
"""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quant_utils, quantize_static, save_tensors_data
from onnxruntime.quantization.calibrate import create_calibrator

from surgery.npu.qualcomm.arrays import BRANCH, Arrays, read_arrays

_WEIGHTS: Final = {"w8a16": QuantType.QInt8, "w4a16": QuantType.QInt4}
_MARGIN: Final = 1.25
"""Ranges are this much wider than what the samples showed. Rounded weights push activations past
what the float graph has, and what is cut off is cut off at other nodes on the NPU than on the CPU:
with no room, one output of a block of width 256 had a cosine of 0.9974, with room 0.99999."""


def main(model: str, out: str, scheme: str, ranges: str, scales: str, done: str) -> None:
    """Quantize; arguments as `quantize` gives them."""
    logging.disable(logging.WARNING)
    quant_utils.pack_bytes_to_4bit = _packed
    samples = Path(done).parent
    settings = _settings(model, scheme, _Reader(samples), read_arrays(Path(scales)))
    if not Path(ranges).is_file():
        save_tensors_data(_calibrated(Path(model), settings, samples), ranges)
    quantize_static(
        model,
        out,
        activation_type=settings.activation_type,
        weight_type=settings.weight_type,
        op_types_to_quantize=settings.op_types_to_quantize,
        use_external_data_format=settings.use_external_data_format,
        extra_options=settings.extra_options,
        calibration_cache_path=ranges,
    )
    Path(done).touch()


def _settings(model: str, scheme: str, reader: "_Reader", scales: Arrays) -> Any:
    """What onnxruntime advises for QNN, but with symmetric weights, a scale for each column."""
    without_torch = ModuleType("onnxruntime.tools.pytorch_export_helpers")
    without_torch.infer_input_info = None  # type: ignore[attr-defined]
    sys.modules[without_torch.__name__] = without_torch  # it isn't used, and its torch takes 1.5 s
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    graph = onnx.load(model, load_external_data=False).graph
    return get_qnn_qdq_config(
        model,
        reader,
        activation_type=QuantType.QUInt16,
        weight_type=_WEIGHTS[scheme],
        weight_symmetric=True,
        init_overrides=_by_column(graph, _WEIGHTS[scheme], scales) | _gains(graph),
    )


def _by_column(graph: Any, kind: Any, scales: Arrays) -> dict[str, list[dict[str, Any]]]:
    """Give each column of a matrix a scale of its own, which `per_channel` doesn't for MatMul.

    On builtin/tiny-qwen2 in W4A16, 12,140 tokens of held-out text lose 0.045 of loss against fp32
    with it, and 0.235 with one scale a matrix.
    """
    own = {"axis": 1, "quant_type": kind, "symmetric": True}
    return {
        name: _known(kind, scales[name]) if name in scales else [own]
        for name in _second_inputs(graph, "MatMul")
    }


def _known(kind: Any, scales: Any) -> list[dict[str, Any]]:
    zero = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type))
    own = {"axis": 1, "quant_type": kind, "zero_point": zero}
    return [{**own, "scale": scale} for scale in scales]


def _gains(graph: Any) -> dict[str, list[dict[str, Any]]]:
    """The factors of layer norms, which the NPU takes with 8 bits or 16, but not signed 8 or 4."""
    own = {"quant_type": QuantType.QUInt16, "symmetric": True}
    return {name: [own] for name in _second_inputs(graph, "LayerNormalization")}


def _second_inputs(graph: Any, kind: str) -> Iterator[str]:
    """Those of all nodes of a kind, where they are weights."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = (node.input[1] for node in graph.node if node.op_type == kind)
    return (name for name in inputs if name in weights)


def _calibrated(model: Path, settings: Any, samples: Path) -> Any:
    """The range of every activation, with some room."""
    found = _ranges(model, settings, samples)
    if (samples / BRANCH).is_dir():
        own = _ranges(model, settings, samples / BRANCH).data
        inputs = json.loads((samples / f"{BRANCH}.json").read_text())
        inside = _branch(onnx.load(model, load_external_data=False).graph, inputs)
        found.data.update({name: own[name] for name in inside & own.keys()})
    for tensor in found.data.values():
        tensor.lowest, tensor.highest = tensor.lowest * _MARGIN, tensor.highest * _MARGIN
    return found


def _ranges(model: Path, settings: Any, samples: Path) -> Any:
    calibrator = create_calibrator(
        model,
        settings.op_types_to_quantize,
        augmented_model_path=str(model.with_name("augmented.onnx")),
        use_external_data_format=settings.use_external_data_format,
    )
    calibrator.collect_data(_Reader(samples))
    return calibrator.compute_data()


def _branch(graph: Any, inputs: list[str]) -> set[str]:
    """All that comes of these inputs, up to where it is added to something else."""
    inside = set(inputs)
    for node in graph.node:
        if node.op_type != "Add" and inside & {*node.input}:
            inside.update(node.output)
    return inside


def _packed(values: bytes) -> bytearray:
    """Pack as onnxruntime does, two values a byte, the first one low, but not one by one.

    Its own loop in Python takes 7.5 s for a block of Qwen2.5-3B, which is most of quantizing it.
    """
    nibbles = np.frombuffer(values, dtype=np.uint8) & 0xF
    padded = np.append(nibbles, np.zeros(nibbles.size % 2, dtype=np.uint8))
    return bytearray((padded[0::2] | (padded[1::2] << 4)).tobytes())


class _Reader:
    """Samples one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, folder: Path) -> None:
        self._files: Iterator[Path] = iter(sorted(folder.glob("*.npz")))

    def get_next(self) -> Arrays | None:
        file = next(self._files, None)
        return read_arrays(file) if file else None


if __name__ == "__main__":
    main(*sys.argv[1:])
