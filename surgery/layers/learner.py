"""Learners: a visual and a textual low-rank attention, parallel to a block's own.

Shapes: B rows, T tokens of this call, S tokens so far, D width of the hidden state.
"""

import functools
from typing import Any

import torch
from torch import nn

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.layers.attention import AttentionRecorder
from surgery.layers.class_mixin import reduce_mixin, with_mixin
from surgery.layers.low_rank_attention import MixedAttention, Rope
from surgery.layers.peft_wrapper import TrainedPart
from surgery.layers.sequence_cache import SequenceState, sequence_of
from surgery.operations.edits import AddLearner


class BlockLearners(TrainedPart):
    """A block's learners by adapter, a submodule of the attention, so that they wrap nothing.

    Args:
        module_to_save: An identity.
        adapter_name: PEFT's name of the adapter.
        edit: The planned edit.
        layer: Index of the cache layer of their keys and values.
        width: Width of a head.
        device: Device of the weights.
    """

    adapter_layer_names = ("learner",)
    _switch: object

    def init_modules(self, adapter_name: str, **kwargs: Any) -> None:
        """Create the container of the parts; see PEFT."""
        self.learner = nn.ModuleDict()
        self.edit: AddLearner = kwargs["edit"]
        self.layer: int = kwargs["layer"]
        self.width: int = kwargs["width"]
        self.is_confirmed = False
        self.may_drop = False

    def update(self, adapter_name: str, **kwargs: Any) -> None:
        """Add the parts for an adapter; see PEFT."""
        super().update(adapter_name)
        if adapter_name not in self.learner and kwargs:
            self.learner[adapter_name] = MixedAttention(self.edit, self.width, kwargs["device"])

    @property
    def is_active(self) -> bool:
        """Whether learners take part in this call."""
        return not self.disable_adapters

    def _forward_wrapped(
        self,
        h_BTD: torch.Tensor,
        rows_BTS: torch.Tensor | None,
        rope: Rope,
        sequence: SequenceState,
    ) -> torch.Tensor:
        """Summand of the attention's output, (B, T, D); the router reads the attention weights."""
        mixture: Any = self.learner[self.active_adapters[0]]
        new = mixture.keys_and_values(sequence, rope)
        known = sequence.append_keys_values(self.layer, *new)
        mixed: torch.Tensor = mixture.textual(h_BTD, known, sequence.text, rope)
        if sequence.image is not None and rows_BTS is not None:
            image = mixture.visual(h_BTD, known, sequence.image, rope)
            weights = mixture.router_weights(rows_BTS, sequence).to(h_BTD.dtype)
            both = self.edit.factor * (weights[..., :1] * image + weights[..., 1:] * mixed)
            mixed = torch.where(sequence.image.any(dim=-1, keepdim=True), both, mixed)
        return mixed

    def _forward_wrapped_passthrough(self, h_BTD: torch.Tensor, *args: Any) -> torch.Tensor:
        return torch.zeros_like(h_BTD)

    def merge_refusal(self) -> Diagnostic:
        """Error of merging it; see `TrainedPart`."""
        return diagnostic("A412.learners")


class LearnerAttention:
    """Mixin of a block's attention that adds the learners to its output."""

    learner: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the attention, with its own arguments and result."""
        learner: Any = self.learner
        sequence = sequence_of(learner._switch) if isinstance(learner, BlockLearners) else None
        if sequence is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with AttentionRecorder() as recorder:
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        own, *rest = output if isinstance(output, tuple) else (output,)
        residual_BTD = sequence.residuals.pop(learner.edit.block)
        rows_BTS = None
        if sequence.image is not None:
            rows_BTS = recorder.rows(own.shape[1], next(iter(rest), None))
        own = own + learner(residual_BTD + own, rows_BTS, _rope(kwargs, learner), sequence)
        if not learner.is_confirmed:
            sequence.sums[learner.edit.block] = residual_BTD + own
        return (own, *rest) if isinstance(output, tuple) else own

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_mixin(LearnerAttention, self)


def add_learner(model: nn.Module, edit: AddLearner, adapter: str, layer: int) -> None:
    """Add learners to the attention of one block.

    Args:
        model: The base, changed in place.
        edit: The planned edit.
        adapter: PEFT's name of the adapter.
        layer: Index of the cache layer of their keys and values.

    Raises:
        SurgeryError: A415, where the heads' width doesn't divide that of keys and values.
    """
    attention: Any = model.get_submodule(edit.path)
    width = int(getattr(attention, "head_dim", 0)) or edit.hidden
    if edit.kv % width or edit.hidden % edit.kv:
        raise SurgeryError(
            diagnostic(
                "A415.odd_width", path=edit.path, width=width, hidden=edit.hidden, kv=edit.kv
            )
        )
    device = next(attention.parameters()).device
    learner = BlockLearners(
        nn.Identity(), adapter, edit=edit, layer=layer, width=width, device=device
    )
    block = model.get_submodule(edit.path.rpartition(".")[0])
    learner.may_drop = any(isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules())
    attention.learner = learner
    attention.__class__ = with_mixin(LearnerAttention, type(attention))
    before, after = (model.get_submodule(norm) for norm in edit.norms)
    before.register_forward_pre_hook(functools.partial(_take_residual, learner))
    after.register_forward_pre_hook(functools.partial(_confirm, learner))


def _take_residual(learner: BlockLearners, norm: nn.Module, args: tuple[Any, ...]) -> None:
    sequence = sequence_of(learner._switch)
    if sequence is not None:
        sequence.residuals[learner.edit.block] = args[0]


def _confirm(learner: BlockLearners, norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Check once that the block computes the expected sum; with dropout it can't be compared."""
    sequence = sequence_of(learner._switch)
    total = sequence.sums.pop(learner.edit.block, None) if sequence is not None else None
    if total is None or (norm.training and learner.may_drop):
        return
    if not torch.equal(args[0], total):
        raise SurgeryError(diagnostic("A416", norms=learner.edit.norms[1], path=learner.edit.path))
    learner.is_confirmed = True


def _rope(kwargs: dict[str, Any], learner: BlockLearners) -> Rope:
    rope = kwargs.get("position_embeddings")
    if not isinstance(rope, tuple) or rope[0].dim() != 3 or rope[0].shape[2] > learner.width:
        raise SurgeryError(diagnostic("A415.no_rotary"))
    return rope
