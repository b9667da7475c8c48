"""What `surgery export --to qnn` writes for a plan, in bytes, before anything is exported.

More than a device has to hold: each phase has graphs of its own, prompt and answer, so that weights
are written twice; embeddings stay in float; and next to each binary is the quantized graph that
the CPU runs, to check it. What a binary is larger than its weights is measured: on
builtin/tiny-qwen2, and on a model of Qwen2.5-3B's shape (benchmarks/export_npu).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from surgery.model.anatomy import Tensor
from surgery.npu.memory_footprint import quantized_bytes, read_scheme
from surgery.plan.planner import Plan

_PHASES: Final = 2
"""Prefill and decode; the head, and what sees, are one graph for both."""
_BINARY: Final = 133_000
"""Bytes of a binary without weights."""
_PER_WEIGHT: Final = 1.023
"""Scales and padding."""
_GRAPH: Final = 57_000
"""Bytes of a quantized graph without weights, and of the file that names its binary."""
_BINARY_PAIR, _GRAPH_PAIR = 5_000, 4_700
"""Bytes that one pair of LoRA's adds to these: its weights are inputs."""
_FP32_BYTES: Final = 4


@dataclass(frozen=True)
class Exported:
    """What an export holds, without its tokenizer.

    Args:
        device: bytes of what a device needs: binaries, embeddings and LoRA.
        reference: bytes of the same graphs for the CPU, by which binaries are checked.
    """

    device: int
    reference: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.device + self.reference


def exported(plan: Plan, scheme_name: str, base: Literal["unshared", "shared"]) -> Exported | None:
    """Count an export with its default lengths; None where `--to qnn` doesn't take the plan.

    Args:
        plan: what is exported.
        scheme_name: how the language model is quantized, such as `w4a16`.
        base: whether text has the untouched base.
    """
    if plan.is_routed or plan.in_place or plan.anatomy.quantization:
        return None
    scheme = read_scheme(scheme_name)
    graphs = [
        *_blocks(plan, scheme.decoder, base),
        *_outside_blocks(plan, scheme.decoder, ("head", "norm")),
        *_outside_blocks(plan, scheme.auxiliary, ("vision", "projector")),
    ]
    weights, pairs = sum(g.weights for g in graphs), sum(g.pairs for g in graphs)
    binaries = round(_PER_WEIGHT * weights) + _BINARY * len(graphs) + _BINARY_PAIR * pairs
    embeddings = sum(tensor.size for tensor in _tensors(plan, ("embeddings",)))
    lora = sum(tensor.size for edit in plan.loras() for tensor in edit.tensors)
    return Exported(
        device=binaries + _FP32_BYTES * (embeddings + lora),
        reference=weights + _GRAPH * len(graphs) + _GRAPH_PAIR * pairs,
    )


class _Graph(NamedTuple):
    """Bytes of the weights of a graph, and how many pairs of LoRA's it takes."""

    weights: int
    pairs: int = 0


def _blocks(plan: Plan, width: float, base: str) -> list[_Graph]:
    """The graphs of all blocks, prefill and decode."""
    own = {edit.block: _Graph(quantized_bytes(edit.tensors, width)) for edit in plan.swaps()}
    pairs = Counter(edit.block for edit in plan.loras())
    remaining = (
        index for index in range(plan.anatomy.count) if base != "shared" or index not in own
    )
    tensors = ((index, plan.anatomy.block(index).tensors) for index in remaining)
    theirs = [_Graph(quantized_bytes(found, width), pairs[index]) for index, found in tensors]
    return _PHASES * [*own.values(), *theirs]


def _outside_blocks(plan: Plan, width: float, parts: tuple[str, ...]) -> list[_Graph]:
    tensors = _tensors(plan, parts)
    return [_Graph(quantized_bytes(tensors, width))] if tensors else []


def _tensors(plan: Plan, parts: tuple[str, ...]) -> list[Tensor]:
    names = {name for part in parts for name in plan.result.parts.get(part, ())}
    return [tensor for tensor in plan.result.outside if tensor.name in names]
