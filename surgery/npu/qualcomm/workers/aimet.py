"""Find the scale of each column of matrices by AIMET; arguments: MODEL SCHEME SAMPLES SCALES.

AIMET's sequential MSE tries twenty scales for each column and takes the one with which the product
of the samples and the rounded column is nearest to that of the column itself. Each matrix is given
to it alone, with all that the samples give it at once: for an entire graph AIMET rounds every
matrix again for each sample and each scale, which takes minutes a block.
Source: aimet_onnx.sequential_mse of aimet-onnx 2.42.0.

Runs only as a process of its own, so AIMET, and torch with it, is imported at the top.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from aimet_onnx import QuantizationSimModel, apply_seq_mse
from onnx import TensorProto, helper, numpy_helper

from surgery.npu.qualcomm.arrays import Arrays, read_arrays, write_arrays
from surgery.storage.atomic_text import replaced

_WEIGHTS: Final = {"w8a16": "int8", "w4a16": "int4"}
_MOST: Final = 1 << 25
"""Weights that AIMET is given at once; it holds them several times over, and columns are apart."""


def main(model: str, scheme: str, samples: str, scales: str) -> None:
    """Write the scales; arguments as `quantize` gives them."""
    logging.disable(logging.WARNING)
    graph = onnx.load(model).graph
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    products = {
        node.input[1]: node.input[0]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in matrices
    }
    shown = map(read_arrays, sorted(Path(samples).glob("*.npz")))
    rows = _rows(Path(model), sorted({*products.values()}), shown)
    found = {
        name: _scales(numpy_helper.to_array(matrices[name]), rows[factor], _WEIGHTS[scheme])
        for name, factor in products.items()
    }
    with replaced(Path(scales)) as partial:
        write_arrays(partial, found)


def _rows(model: Path, names: list[str], samples: Iterable[Arrays]) -> dict[str, Any]:
    """What the float graph has under these names, all samples one after the other (rows, width)."""
    graph = onnx.load(model, load_external_data=False)
    known_outputs = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    graph.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in known_outputs
    )
    outputs = [value.name for value in graph.graph.output]
    shown = model.with_name("shown.onnx")  # next to the model, whose external data it has
    onnx.save(graph, shown)
    options = ort.SessionOptions()
    # Fused nodes round differently: a graph whose matrices get zeros added has the same rows.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown, options, providers=["CPUExecutionProvider"])
    collected: dict[str, list[Any]] = {name: [] for name in names}
    for sample in samples:
        known = {**sample, **dict(zip(outputs, session.run(None, dict(sample)), strict=True))}
        for name in names:
            collected[name].append(known[name].reshape(-1, known[name].shape[-1]))
    return {name: np.concatenate(found) for name, found in collected.items()}


def _scales(matrix: Any, rows: Any, kind: str) -> Any:
    """Scales (columns) of a matrix (width, columns) behind what it is fed with (rows, width)."""
    chunks = np.array_split(matrix, -(-matrix.size // _MOST), axis=1)
    return np.concatenate([_chunk_scales(chunk, rows, kind) for chunk in chunks])


def _chunk_scales(matrix: Any, rows: Any, kind: str) -> Any:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "matrix"], ["product"], "product")],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, rows.shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    simulated = QuantizationSimModel(
        model, param_type=kind, activation_type="int16", config_file="htp_v79"
    )
    apply_seq_mse(simulated, [{"rows": rows}])
    found = simulated.qc_quantize_op_dict["matrix"].get_encodings()
    return np.array([encoding.delta for encoding in found], np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
