"""One small graph, and what the compiler is known to make of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

Known = Literal["accepted", "rejected", "wrong"]
"""accepted: compiles and computes right. rejected: doesn't compile. wrong: compiles, and then fails
or computes other numbers."""


@dataclass(frozen=True)
class Case:
    """A graph in the text form of ONNX.

    Args:
        name: what it shows, in words.
        graph: `(inputs) => (outputs) <initializers> { nodes }`.
        expected: what the compiler made of it when it was last looked at.
        op: the operator that it is about; the first of the name's words where empty.
        weights: constants by name; a list is a shape, and stands for random numbers of a layer's
            size.
        feeds: inputs that can't be any number, such as indices.
        opset: of ONNX.
    """

    name: str
    graph: str
    expected: Known = "accepted"
    op: str = ""
    weights: Mapping[str, Any] = field(default_factory=dict)
    feeds: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 23

    @property
    def operator(self) -> str:
        """The operator that it is about."""
        return self.op or self.name.split()[0].rstrip(",")

    def model(self) -> onnx.ModelProto:
        """Return the graph with its weights."""
        head = f'<ir_version: 10, opset_import: ["" : {self.opset}, "com.microsoft" : 1]>'
        model = onnx.parser.parse_model(f"{head} g {self.graph}")
        constants = {name: self._constant(of) for name, of in self.weights.items()}
        tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
        model.graph.initializer.extend(tensors)
        for index, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{index}"
        return model

    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return numbers to run it on: those given, and random ones."""
        generator = np.random.default_rng(1)
        found = {}
        for value in self.model().graph.input:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            shape = [dim.dim_value or 4 for dim in value.type.tensor_type.shape.dim]
            numbers = self.feeds.get(value.name, generator.standard_normal(shape))
            found[value.name] = np.asarray(numbers).astype(dtype)
        return found

    def _constant(self, of: Any) -> np.ndarray[Any, Any]:
        if isinstance(of, np.ndarray):
            return of
        generator = np.random.default_rng(0)
        scale = 1 / math.sqrt(of[-2]) if len(of) > 1 else 1
        return (scale * generator.standard_normal(of)).astype(np.float32)
