"""Split a model into parts whose graphs have static shapes.

The parts: vision, embeddings, rotary embeddings, blocks, head.

Imports torch at the top: only exporters that make graphs reach it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from surgery.export.base import ExportJob
from surgery.export.parts.graph_part import GraphPart, StepGraph
from surgery.graphs.block.forms import BlockForm, Shape
from surgery.graphs.block.trace_errors import no_parts
from surgery.graphs.block.tracer import Tracer
from surgery.graphs.embeddings_and_head import EmbeddingsAndHead
from surgery.graphs.model_shell import ModelShell
from surgery.graphs.vision_graph import VisionGraph
from surgery.runtime.causal_mask import sliding_of
from surgery.runtime.manifest import GraphRecord, ValueRecord

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

EMBEDDINGS: Final = "embeddings"
POSITIONS: Final = "positions"
_OF_THE_LOOP: Final = ("ids", "positions", "hidden", "mask", "past_key", "past_value")


class ModelParts:
    """The parts of one model; each distinct kind of block is traced once.

    Args:
        job: of an adapter that adds nothing but copies and LoRA.

    Attributes:
        vision: vision tower and projector as a part, for one tile of an image; None where the model
            sees nothing.

    Raises:
        SurgeryError: A612 where the model is no chain of blocks or doesn't take images in tiles of
            one size, X110 and X111 for its graphs.
    """

    def __init__(self, job: ExportJob) -> None:
        self._job = job
        self._shapes = [Shape(phase, n, job.context) for phase, n in job.lengths.items()]
        self._shell = ModelShell(job.plan, trust_remote_code=job.trust_remote_code)
        self.vision = self._find_vision() if job.plan.anatomy.names_in("vision") else None
        self._tracer = Tracer(job.plan, trust_remote_code=job.trust_remote_code)
        self._around = EmbeddingsAndHead(self._shell)
        self._forms = [form for form in self._tracer.forms if form.blocks]
        traced = {form.name: list(self._traced(form)) for form in self._forms}
        used = {form.blocks[0]: _others(form, traced[form.name][0]) for form in self._forms}
        self._rotary = self._around.rotary_inputs(used)
        self._graphs = {form.name: self._steps(form, traced[form.name]) for form in self._forms}

    def before(self) -> dict[str, GraphPart]:
        """Return the parts before the blocks: embeddings, and rotary embeddings if there are any.

        Raises:
            SurgeryError: A612 where they aren't enough for this model.
        """
        graphs: dict[str, list[StepGraph]] = {}
        for shape in self._shapes:
            made = self._around.before(shape.tokens, self._rotary)
            for name, model in zip((EMBEDDINGS, POSITIONS), made, strict=False):
                record = GraphRecord(
                    phase=shape.phase, tokens=shape.tokens, window=0, **_values(model)
                )
                step = StepGraph(f"{shape.phase}.onnx", model, record)
                graphs.setdefault(name, []).append(step)
        return {name: GraphPart(made, self._shell.read_weights) for name, made in graphs.items()}

    def block(self, index: int, adapter: Path | None = None) -> GraphPart:
        """Return a block as a part; nothing is read yet.

        Args:
            index: position in the base.
            adapter: the adapter folder for its copy; None for the base's own.
        """
        form = next(form for form in self._forms if index in form.blocks)
        own = self._job.plan.anatomy.block_path(index)
        read = partial(self._read_weights, form, index, adapter)
        return GraphPart(self._graphs[form.name], read, form.module_path, own)

    def head(self) -> GraphPart:
        """Return the final norm and the head as a part, for one token.

        Raises:
            SurgeryError: A612 where there is none.
        """
        model = self._around.head()
        record = GraphRecord(phase="both", tokens=1, window=0, **_values(model))
        return GraphPart([StepGraph("head.onnx", model, record)], self._shell.read_weights)

    def _find_vision(self) -> GraphPart:
        job = self._job
        vision = VisionGraph(self._shell, job.folder, trust_remote_code=job.trust_remote_code)
        model, tile = vision.graph(), vision.tile
        record = GraphRecord(
            phase="image", tokens=tile.tokens, window=0, image_token=tile.token, **_values(model)
        )
        return GraphPart([StepGraph("vision.onnx", model, record)], vision.read_weights)

    def _read_weights(
        self, form: BlockForm, index: int, adapter: Path | None, names: list[str]
    ) -> "Mapping[str, torch.Tensor]":
        found = self._tracer.read_weights(form, index, adapter)
        return {name: found[name] for name in names}

    def _traced(self, form: BlockForm) -> "Iterator[ir.Model]":
        return (self._tracer.trace(form, shape).model for shape in self._shapes)

    def _steps(self, form: BlockForm, models: "list[ir.Model]") -> list[StepGraph]:
        sliding = self._sliding(form)
        sources = {
            **{str(v.name): "lora" for v in models[0].graph.inputs if _is_lora(form, v)},
            **self._rotary[form.blocks[0]],
        }
        return [
            StepGraph(
                f"{shape.phase}.onnx",
                model,
                GraphRecord(
                    phase=shape.phase,
                    tokens=shape.tokens,
                    window=shape.window,
                    sliding=sliding,
                    **_values(model, sources),
                ),
            )
            for shape, model in zip(self._shapes, models, strict=True)
        ]

    def _sliding(self, form: BlockForm) -> int | None:
        """How far back a form's attention sees, read off the mask that the model makes."""
        call = self._tracer.call(form, Shape("prefill", self._job.context, 0))
        if "mask" not in call.tensors:
            return None
        try:
            return sliding_of(call.tensors["mask"].numpy())
        except ValueError as error:
            raise no_parts(self._job.plan, f"`{form.name}`: {error}") from error


def _others(form: BlockForm, model: "ir.Model") -> list[str]:
    """Inputs of a block's graph that come from what the decoder makes of the positions."""
    return [
        str(value.name)
        for value in model.graph.inputs
        if value.name not in _OF_THE_LOOP and not _is_lora(form, value)
    ]


def _is_lora(form: BlockForm, value: "ir.Value") -> bool:
    return str(value.name).startswith(f"{form.module_path}.")


def _values(model: "ir.Model", sources: Mapping[str, str] | None = None) -> dict[str, object]:
    """Inputs, outputs and weights of a graph, as its record has them."""
    known = sources or {}
    inputs = [_record(v, known.get(str(v.name), str(v.name))) for v in model.graph.inputs]
    return {"inputs": inputs, "outputs": [_record(value, "") for value in model.graph.outputs]}


def _record(value: "ir.Value", source: str) -> ValueRecord:
    assert value.dtype is not None
    assert value.shape is not None
    return ValueRecord(
        name=str(value.name),
        dtype=value.dtype.numpy().name,
        shape=tuple(value.shape.numpy()),
        source=source,
    )
