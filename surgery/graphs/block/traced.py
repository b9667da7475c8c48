"""A traced block: its graph, inputs for it, and what torch answers to them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from surgery.graphs.block.forms import BlockForm, Shape
from surgery.graphs.block.step import Feeds, Step
from surgery.graphs.block.step_inputs import draw

if TYPE_CHECKING:
    import onnx_ir as ir

    Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Traced:
    """The graph of one step of one block.

    Args:
        form: which kind of block.
        shape: of the step.
        module_path: full module name of the block that was traced.
        model: the graph, in fp32.
        step: what was traced; with the graph's weights.
        inputs: one of each input of the step; masks, cos and sin as the decoder makes them.
        random_names: names of those that are random values and not the decoder's or an adapter's.
    """

    form: BlockForm
    shape: Shape
    module_path: str
    model: "ir.Model"
    step: Step = field(repr=False)
    inputs: Feeds = field(repr=False)
    random_names: frozenset[str]

    @property
    def names(self) -> list[str]:
        """The inputs of the graph, in its order."""
        return [str(value.name) for value in self.model.graph.inputs]

    def sample(self, seed: int = 0) -> "Arrays":
        """Return inputs of the graph; the same ones for the same seed."""
        feeds = {
            **self.inputs,
            **draw({n: self.inputs[n] for n in sorted(self.random_names)}, seed),
        }
        return {name: feeds[name].numpy() for name in self.names}

    def run(self, feeds: "Arrays") -> "Arrays":
        """Return what torch answers, by the names of the graph's outputs; only with weights.

        Args:
            feeds: as from `sample`.
        """
        given = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        with torch.no_grad():
            out = self.step({**self.inputs, **given})
        return {name: tensor.numpy() for name, tensor in out.items()}
