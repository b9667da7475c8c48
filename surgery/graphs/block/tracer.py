"""From a plan to the ONNX graphs of its distinct blocks.

Only what is reached when a graph is asked for imports this module: it imports torch.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.graphs.block.call import Call, find_call
from surgery.graphs.block.forms import BlockForm, Shape, block_forms
from surgery.graphs.block.kv_cache import NoKeysError
from surgery.graphs.block.step import Feeds, Step, build_step
from surgery.graphs.block.step_inputs import all_inputs
from surgery.graphs.block.trace_errors import no_step, no_weights, not_static, reason_of
from surgery.graphs.block.traced import Traced
from surgery.graphs.block.vision_blocks import find_vision_call, vision_forms
from surgery.graphs.block.weights import Disk, Weights, fill, settle
from surgery.graphs.torch_export import name_in_base, to_onnx
from surgery.model.meta_device import meta_model
from surgery.model.names.disk_names import read_disk_names
from surgery.model.structure.block_finder import text_config
from surgery.operations.edits import AddExpert, AddLearner, Edit
from surgery.plan.planner import Plan

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

_LEARNER: Final = (
    "its router reads the attention weights of the complete prompt, and its learners look at the "
    "prompt's own image and text tokens, whose number and positions depend on the data"
)


class Tracer:
    """Traces the blocks of one plan, one at a time; the rest of the model never has weights.

    Args:
        plan: of a model on disk; its config is enough where no real weights are asked for.
        trust_remote_code: whether the model may run code of its own.

    Raises:
        SurgeryError: M104 and M105 where the model can't be built, X112 for a plan of a model that
            is only in memory.
    """

    def __init__(self, plan: Plan, *, trust_remote_code: bool = False) -> None:
        if plan.files is None:
            raise SurgeryError(no_weights(plan.anatomy.source, "the model is only in memory"))
        self._plan = plan
        path = plan.anatomy.blocks_path
        self._model: Any = meta_model(plan.files, trust_remote_code).float().eval()
        self._model.requires_grad_(False)
        self._decoder = model_around(self._model, path)
        self._blocks: Any = self._model.get_submodule(path)
        within = {*self._blocks.modules()}
        settle(self._decoder, (m for m in self._decoder.modules() if m not in within))
        self._call = cache(self._find_call)

    @cached_property
    def forms(self) -> list[BlockForm]:
        """The distinct kinds of block, then a block of the vision tower and the projector."""
        seen = vision_forms(self._model, self._plan.anatomy)
        return [*block_forms(self._plan, self._blocks), *seen]

    def trace(
        self,
        form: BlockForm,
        shape: Shape,
        *,
        weights: Weights = "none",
        block: int | None = None,
        adapter: Path | None = None,
    ) -> Traced:
        """Return the graph of one step of one block.

        Args:
            form: one of `forms`.
            shape: of the step; a vision tower and a projector take one image, whatever it is. A
                prefill is at least as long as the runs that an expert's rule names.
            weights: `none` for a graph without weights, which takes no memory; `random` for the
                base's shape with fixed values; `real` for those on disk.
            block: which of the form's blocks; the first unless given.
            adapter: an adapter folder, whose copies, experts and LoRA are taken. Without it a
                copied block is the base's, an expert its matrix, and LoRA random.

        Raises:
            SurgeryError: X110 where the block has no static graph, with torch.export's reason;
                X111 where it has no step with keys and values in and out; X112 where a real weight
                can't be read.
        """
        index = next(iter(form.blocks), -1) if block is None else block
        module_path = self._plan.anatomy.block_path(index) if form.blocks else form.module_path
        added = self._added(form, index)
        if any(isinstance(edit, AddLearner) for edit in added):
            raise SurgeryError(not_static(form, shape, _LEARNER))
        shape = _long_enough(added, shape)
        call = self._call(form, shape, index)
        step = self._step(form, shape, index, weights, adapter)
        feeds, random_names = all_inputs(call, shape, added, adapter)
        try:
            model = _exported(step, feeds, module_path, with_values=weights != "none")
        except Exception as error:  # torch.export has many ways to say no
            raise SurgeryError(not_static(form, shape, reason_of(error))) from error
        return Traced(form, shape, module_path, model, step, feeds, random_names)

    def read_weights(
        self, form: BlockForm, block: int, adapter: Path | None = None
    ) -> "dict[str, torch.Tensor]":
        """Return the real parameters of a decoder block as its graph computes with them.

        With them a graph that was traced without weights serves every block of its form.

        Args:
            form: one of `forms`.
            block: which of its blocks.
            adapter: as for `trace`.

        Returns:
            fp32, by full name in the base; weights of linear maps as torch has them.

        Raises:
            SurgeryError: X111 and X112, as `trace`.
        """
        step = self._step(form, Shape("decode", 1, 1), block, "real", adapter)
        module_path = self._plan.anatomy.block_path(block)
        named = step.plain.named_parameters()
        return {name_in_base(f"plain.{name}", module_path): p.detach() for name, p in named}

    def call(self, form: BlockForm, shape: Shape) -> Call:
        """Return how the decoder calls the first block of a form.

        Raises:
            SurgeryError: X111, as `trace`.
        """
        return self._call(form, shape, form.blocks[0])

    def _step(
        self, form: BlockForm, shape: Shape, index: int, weights: Weights, adapter: Path | None
    ) -> Step:
        module_path = self._plan.anatomy.block_path(index) if form.blocks else form.module_path
        disk = self._disk(adapter) if weights == "real" else None
        return build_step(
            self._alone(module_path),
            module_path,
            self._added(form, index),
            self._call(form, shape, index),
            shape if form.blocks else None,
            partial(self._fill, weights=weights, module_path=module_path, disk=disk),
        )

    def _find_call(self, form: BlockForm, shape: Shape, index: int) -> Call:
        try:
            if not form.blocks:
                return find_vision_call(self._model, form.module_path)
            with _attention(self._model, "eager"):
                width = text_config(self._model).hidden_size
                return find_call(self._decoder, self._blocks, index, shape, width)
        except NoKeysError as error:
            raise SurgeryError(no_step(form, shape, str(error))) from error
        except Exception as error:  # each family refuses in its own way
            raise SurgeryError(no_step(form, shape, reason_of(error))) from error

    def _alone(self, module_path: str) -> "nn.Module":
        """A copy of a block on the meta device, with experts as they are defined."""
        block: nn.Module = copy.deepcopy(self._model.get_submodule(module_path))
        for module in block.modules():
            config: Any = getattr(module, "config", None)
            if hasattr(config, "_experts_implementation"):
                config._experts_implementation = "eager"
        return block

    def _fill(
        self, block: "nn.Module", *, weights: Weights, module_path: str, disk: Disk | None
    ) -> None:
        fill(self._decoder, block, weights, module_path, disk)

    def _added(self, form: BlockForm, index: int) -> list[Edit]:
        kinds = {type(edit) for edit in form.added}
        return [e for e in self._plan.edits if e.block == index >= 0 and type(e) in kinds]

    def _disk(self, adapter: Path | None) -> Disk:
        plan = self._plan
        assert plan.files is not None
        if plan.anatomy.quantization:
            why = f"its weights are packed ({plan.anatomy.quantization})"
            raise SurgeryError(no_weights(plan.anatomy.source, why))
        return Disk(read_disk_names(plan.files, plan.anatomy), adapter)


def _long_enough(added: Sequence[Edit], shape: Shape) -> Shape:
    rules = (edit.rule for edit in added if isinstance(edit, AddExpert))
    ends = [end for rule in rules if shape.phase == "prefill" for _, end in rule.runs]
    return replace(shape, tokens=max([shape.tokens, *ends]))


def model_around(model: Any, path: str) -> Any:
    """Return the innermost transformers model around a list of blocks, which takes embeddings.

    Args:
        model: the complete one.
        path: module name of the list of blocks.
    """
    from transformers import PreTrainedModel

    names = path.split(".")
    outer = (".".join(names[:end]) for end in reversed(range(len(names))))
    return next(m for m in map(model.get_submodule, outer) if isinstance(m, PreTrainedModel))


def _exported(step: Step, feeds: Feeds, module_path: str, *, with_values: bool) -> "ir.Model":
    """Export with the attention that the model has, or `eager` where torch.onnx can't."""
    try:
        return to_onnx(step, feeds, module_path, with_values=with_values)
    except Exception as error:
        if "DataDependent" in reason_of(error):
            raise
        with _attention(step, "eager"):
            return to_onnx(step, feeds, module_path, with_values=with_values)


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    """Let a model make the mask that this attention takes: `eager` adds numbers to its scores."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {key: getattr(c, "_attn_implementation", None) for key, c in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
