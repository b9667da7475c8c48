"""Copy expert weights of a CogVLM-style checkpoint into the experts of a model."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError, some_of
from surgery.diagnostics.wording import first_line
from surgery.layers.expert import ExpertMatrix

if TYPE_CHECKING:
    from torch import nn

NameMap = Mapping[str, str | Sequence[str]]
"""Patterns of names in the checkpoint to the matrices that they fill; see `load_expert_weights`."""
Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

COGVLM: Final[NameMap] = {
    "model.layers.{i}.self_attn.vision_expert_query_key_value.weight": (
        "q_proj",
        "k_proj",
        "v_proj",
    ),
    "model.layers.{i}.self_attn.vision_expert_query_key_value.bias": ("q_proj", "k_proj", "v_proj"),
    "model.layers.{i}.self_attn.vision_expert_dense.weight": "o_proj",
    "model.layers.{i}.mlp.vision_mlp.gate_proj.weight": "gate_proj",
    "model.layers.{i}.mlp.vision_mlp.up_proj.weight": "up_proj",
    "model.layers.{i}.mlp.vision_mlp.down_proj.weight": "down_proj",
}
"""The names of CogVLM's and CogVLM2's released checkpoints, for a decoder like Llama or Qwen2."""

_NAMED: Final = 5
_BLOCK: Final = re.compile(r"\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class ExpertReport:
    """What `load_expert_weights` copied and what it didn't.

    Args:
        copied: Name in the checkpoint and name in the model of each filled tensor.
        unfilled: Tensors of experts that nothing filled; they are unchanged.
        no_target: Names that a pattern matched where the model has no such expert or no bias.
        unmatched: Names in the checkpoint that no pattern matched, such as the base's.
        unused: Patterns that matched nothing, such as that of biases which neither side has.
        other_blocks: Those of `no_target` in blocks that have no experts in this recipe.
    """

    copied: tuple[tuple[str, str], ...]
    unfilled: tuple[str, ...]
    no_target: tuple[str, ...]
    unmatched: tuple[str, ...]
    unused: tuple[str, ...]
    other_blocks: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every expert is filled, and no tensor for these blocks is left over."""
        return not (self.unfilled or self._left_over)

    @property
    def _left_over(self) -> tuple[str, ...]:
        other_blocks = set(self.other_blocks)
        return tuple(name for name in self.no_target if name not in other_blocks)

    def __str__(self) -> str:
        parts = [f"{len(self.copied)} tensors of experts filled"]
        for label, names in (
            ("not filled", self.unfilled),
            ("in the checkpoint without an expert here", self._left_over),
            ("of blocks that have no experts here", self.other_blocks),
            ("patterns without a match", self.unused),
            ("names that no pattern matched", self.unmatched),
        ):
            parts += [f"{len(names)} {label}: {some_of(names, _NAMED)}"] if names else []
        return "; ".join(parts)


def load_expert_weights(
    model: "nn.Module", source: Files | Mapping[str, torch.Tensor], name_map: NameMap = COGVLM
) -> ExpertReport:
    """Copy expert weights into a model that a recipe with `op: expert` was applied to.

    Args:
        model: The model that `apply_plan` or `load_adapter` returned.
        source: A safetensors file, a folder of them, several files, or tensors by name.
        name_map: From a pattern of names in the source, with `{i}` for the index of the block, to
            the last part of a matrix's name in that block, such as `q_proj`, or of several whose
            rows are concatenated. Weights and biases have separate patterns, which end in `.weight`
            and `.bias`. CogVLM's names by default.

    Returns:
        What was copied and what did not match. Nothing is copied if this raises.

    Raises:
        SurgeryError: A419, for a model without experts, for files that can't be read, and for a
            tensor whose shape isn't that of the experts it should fill.
    """
    experts = {
        _position(name): m for name, m in model.named_modules() if isinstance(m, ExpertMatrix)
    }
    if not experts:
        raise SurgeryError(diagnostic("A419.no_experts"))
    patterns = {_compile(pattern): pattern for pattern in name_map}
    pairs: list[tuple[str, str, torch.Tensor, torch.Tensor]] = []
    blocks = {block for block, _ in experts}
    no_target, other_blocks, unmatched, used = [], [], [], set()
    for name, read in _tensors(source):
        found = next(((p, m) for p in patterns if (m := p.fullmatch(name))), None)
        if found is None:
            unmatched.append(name)
            continue
        pattern = patterns[found[0]]
        used.add(pattern)
        block = int(found[1]["i"])
        targets = _targets(experts, block, name_map[pattern], name)
        pairs += _split(name, read(), targets) if targets else []
        no_target += [] if targets else [name]
        other_blocks += [] if block in blocks else [name]
    _copy(pairs)
    filled = {target for _, target, _, _ in pairs}
    return ExpertReport(
        copied=tuple((name, target) for name, target, _, _ in pairs),
        unfilled=tuple(sorted(set(_all_tensors(experts)) - filled)),
        no_target=tuple(no_target),
        unmatched=tuple(unmatched),
        unused=tuple(p for p in name_map if p not in used),
        other_blocks=tuple(other_blocks),
    )


def _position(name: str) -> tuple[int, str]:
    found = _BLOCK.search(name)
    return (int(found[1]), found[2]) if found else (-1, name)


def _compile(pattern: str) -> re.Pattern[str]:
    if "{i}" not in pattern:
        raise SurgeryError(diagnostic("A419.pattern", pattern=pattern))
    return re.compile(re.escape(pattern).replace(r"\{i\}", r"(?P<i>\d+)"))


def _targets(
    experts: Mapping[tuple[int, str], ExpertMatrix], block: int, names: Any, name: str
) -> list[tuple[str, torch.Tensor]]:
    """Name and tensor of each matrix to fill; empty unless the model has all of them."""
    kind = name.rpartition(".")[2]
    found = []
    for matrix in [names] if isinstance(names, str) else names:
        for (index, path), expert in experts.items():
            if index == block and f".{path}".endswith(f".{matrix}"):
                tensor = getattr(expert.expert[expert.active_adapters[0]], kind, None)
                found += [] if tensor is None else [(f"{index}.{path}.{kind}", tensor)]
    return found if len(found) == len([names] if isinstance(names, str) else names) else []


def _split(
    name: str, tensor: torch.Tensor, targets: list[tuple[str, torch.Tensor]]
) -> list[tuple[str, str, torch.Tensor, torch.Tensor]]:
    rows = [target.shape[0] for _, target in targets]
    wanted = (sum(rows), *targets[0][1].shape[1:])
    if tuple(tensor.shape) != wanted:
        found, expected = tuple(tensor.shape), wanted
        raise SurgeryError(diagnostic("A419.shape", name=name, found=found, expected=expected))
    parts = torch.split(tensor, rows)
    return [(name, t, part, into) for (t, into), part in zip(targets, parts, strict=True)]


@torch.no_grad()
def _copy(pairs: Iterable[tuple[str, str, torch.Tensor, torch.Tensor]]) -> None:
    for _, _, part, into in pairs:
        into.copy_(part)


def _all_tensors(experts: Mapping[tuple[int, str], ExpertMatrix]) -> Iterator[str]:
    for (index, path), expert in experts.items():
        for name, _ in expert.expert[expert.active_adapters[0]].named_parameters():
            yield f"{index}.{path}.{name}"


def _tensors(source: Any) -> Iterator[tuple[str, Any]]:
    """Name of each tensor, and a function that reads it."""
    if isinstance(source, Mapping):
        for name, tensor in source.items():
            yield name, lambda tensor=tensor: tensor
        return
    from safetensors import SafetensorError, safe_open

    for file in _files(source):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 — it is no mapping
                    yield name, lambda name=name, opened=opened: opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            reason = first_line(error)
            raise SurgeryError(diagnostic("A419.unreadable", file=file, reason=reason)) from error


def _files(source: Files) -> list[Path]:
    named = [source] if isinstance(source, str | os.PathLike) else source
    files = [f for n in named for f in (sorted(Path(n).glob("*.safetensors")) or [Path(n)])]
    wrong = next((f for f in files if f.suffix != ".safetensors" or not f.is_file()), None)
    if wrong is not None or not files:
        raise SurgeryError(diagnostic("A419.no_safetensors", file=wrong or source))
    return files
