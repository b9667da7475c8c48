"""What the checks of `surgery verify` work on: an adapter on its base, and the base's own outputs.

The base is loaded once. It is run on the prompts before the adapter is loaded onto it, and a second
module tree over the same tensors stays untouched, so that a check can always run the base.
"""

import copy
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from surgery.adapter.apply import name_in_memory, open_adapter, trainable_parameters
from surgery.adapter.folder import load_base, read_plan
from surgery.adapter.side_files import base_folder
from surgery.model.numerics import Difference, Sums, frozen, raw, same_bits
from surgery.operations.edits import PEFT_PREFIX, AddedTensor, Edit
from surgery.operations.initial_values import initial_value
from surgery.paths.path_state import MULTIMODAL, TEXT, PathName
from surgery.paths.routed_model import RoutedModel
from surgery.paths.switching import multimodal_path, text_path
from surgery.plan.planner import Plan
from surgery.verification.prompts import Prompts, make_prompts

NEW_TOKENS: Final = 16
_ADDED: Final = re.compile(r"\.(modules_to_save|expert|learner|lora_[A-Za-z_]+)\.")
_CONTEXTS: Final = {TEXT: text_path, MULTIMODAL: multimodal_path}


@dataclass(frozen=True)
class Reference:
    """Outputs of the base before the adapter was loaded onto it.

    Args:
        logits: (real tokens of the prompts, vocabulary).
        tokens: (rows, `NEW_TOKENS`), generated greedily.
        digests: SHA-256 of each tensor by its name in the base.
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    digests: dict[str, str]


@dataclass
class VerificationContext:
    """One adapter on its base.

    Args:
        plan: The folder's plan.
        folder: Path of the adapter folder.
        model: Result of `load_adapter`, trainable.
        untouched: The base over the same tensors; None where the base trains in place.
        prompts: A batch of different lengths.
        reference: Outputs of the untouched base.
        trust_remote_code: Whether the base may run its own Python code; False by default.
    """

    plan: Plan
    folder: Path
    model: Any
    untouched: Any
    prompts: Prompts
    reference: Reference
    trust_remote_code: bool = False
    _stored: dict[str, torch.Tensor] = field(init=False, repr=False)
    _trainable: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        named = self.model.named_parameters(remove_duplicate=False)
        self._trainable = frozenset(name for name, p in named if p.requires_grad)
        self._stored = {name: t.detach().clone() for name, t in self.changeable().items()}

    @property
    def paths(self) -> tuple[PathName, ...]:
        """Both paths, or one where the base trains in place."""
        return (MULTIMODAL,) if self.plan.in_place else (TEXT, MULTIMODAL)

    @property
    def decoder(self) -> nn.Module:
        """The model without PEFT's wrapper, with the plan's module names."""
        inner: nn.Module = self.model if self.plan.is_plain else self.model.get_base_model()
        return inner

    @cached_property
    def sums(self) -> Sums:
        """What rounding depends on."""
        return sums_of(self.plan, self.decoder)

    def changeable(self) -> dict[str, torch.Tensor]:
        """Tensors that the text path doesn't depend on: all that the plan adds, or trains."""
        tensors = named_tensors(self.model)
        in_place = dict(trainable_parameters(self.plan, self.model)) if self.plan.in_place else {}
        return in_place | {name: tensors[name] for _, _, name in self._added()}

    @contextmanager
    def on(self, path: PathName) -> Iterator[None]:
        """Run the model on a path; on its only one where the base trains in place."""
        if self.plan.in_place:
            yield
            return
        with _CONTEXTS[path](self.model):
            yield

    def logits(
        self, path: PathName, rows: Sequence[int] | None = None, *, images: bool = True
    ) -> torch.Tensor:
        """Logits (real tokens, vocabulary) of the prompts, or of some rows; perhaps all as text."""
        prompts = self.prompts if images else self.prompts.without_images()
        with self.on(path):
            return forward_logits(self.model, prompts.take(rows))

    def difference(self, found: torch.Tensor) -> Difference:
        """Difference of logits from those of the untouched base."""
        return self.sums.compare(found, self.reference.logits)

    @torch.no_grad()
    def perturb(self, seed: int = 1) -> None:
        """Change every parameter that may change at random, by more than training would.

        Buffers are unchanged: constants that must fit each other, such as a linear attention's
        decays.
        """
        generator = torch.Generator().manual_seed(seed)
        for _, tensor in sorted(self.changeable().items()):
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                scale = 0.1 * tensor.abs().float().mean().item() + 0.02
                tensor.add_((noise * scale).to(tensor))

    @torch.no_grad()
    def reset_to_start(self) -> None:
        """Set all that the plan adds to its initial values: copies as their originals, B zero."""
        tensors = named_tensors(self.model)
        for name, start in self._initial_tensors():
            tensors[name].copy_(start)

    def is_at_start(self) -> bool:
        """Whether the folder has what `surgery apply` wrote, bit for bit."""
        pairs = ((self._stored[name], start) for name, start in self._initial_tensors())
        return all(same_bits(stored, start.to(stored.dtype)) for stored, start in pairs)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore every stored tensor and what requires gradients; drop gradients."""
        for name, tensor in self.changeable().items():
            tensor.copy_(self._stored[name])
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            parameter.grad = None
            parameter.requires_grad_(name in self._trainable)
        self.model.eval()

    def _added(self) -> Iterator[tuple[Edit, AddedTensor, str]]:
        """Tensors outside the base; a new depth has all that it adds inside the checkpoint."""
        for edit in () if self.plan.changes_depth else self.plan.edits:
            for tensor in edit.tensors:
                yield edit, tensor, name_in_memory(edit, tensor.name)

    def _initial_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        bases = {base_name(name): tensor for name, tensor in named_tensors(self.model).items()}
        for _, tensor, name in self._added():
            if tensor.start == "copy":
                yield name, bases[tensor.copied]
            elif tensor.start != "weights":
                yield name, torch.from_numpy(initial_value(self.plan.recipe.seed, tensor))


def checked_plan(
    folder: Path, *, base: str | os.PathLike[str] | None = None, trust_remote_code: bool = False
) -> Plan:
    """Read the plan of an adapter folder, after checking its base and the headers of its weights.

    Raises:
        SurgeryError: As `load_adapter`.
    """
    plan, _ = read_plan(folder, base, trust_remote_code=trust_remote_code)
    return plan


def open_context(
    plan: Plan, folder: Path, *, trust_remote_code: bool = False
) -> VerificationContext:
    """Load the base, run it on the prompts, and load the adapter onto it.

    Args:
        plan: The folder's plan, from `checked_plan`.
        folder: Path of the adapter folder.
        trust_remote_code: Whether the base may run its own Python code; False by default.
    """
    assert plan.files is not None
    source = plan.files.folder
    model: Any = load_base(str(source), trust_remote_code=trust_remote_code).eval()
    same_positions = any(edit.rule.form == "segments" for edit in plan.experts())
    prompts = make_prompts(
        source, model, same_positions=same_positions, trust_remote_code=trust_remote_code
    )
    reference = Reference(
        forward_logits(model, prompts), generate_greedily(model, prompts)[0], tensor_digests(model)
    )
    untouched = None if plan.in_place else share_tensors(model)
    if plan.in_place:
        del model
        trained = str(base_folder(plan, folder))
        model = load_base(trained, trust_remote_code=trust_remote_code)
    model = open_adapter(plan, model, folder, trainable=True).eval()
    return VerificationContext(
        plan, folder, model, untouched, prompts, reference, trust_remote_code
    )


def sums_of(plan: Plan, model: nn.Module) -> Sums:
    """Return what rounding depends on; logits may be more precise than the weights.

    Args:
        plan: The applied plan.
        model: The decoder with all that was added.
    """
    shapes = (tensor.shape for kind in plan.anatomy.kinds for tensor in kind.tensors)
    width = max((size for shape in shapes for size in shape), default=1)
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    coarsest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    return Sums(coarsest, len(plan.depth), width)


def inputs_of(model: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
    """Arguments of a model's call: with a mask of image tokens, where it has parts for them."""
    is_routed = isinstance(model, RoutedModel)
    return {**prompts.inputs, **({"image_mask": prompts.image_mask} if is_routed else {})}


def forward_logits(model: Any, prompts: Prompts) -> torch.Tensor:
    """Logits (real tokens, vocabulary) of a batch, padding left out."""
    with frozen(model):
        output = model(**inputs_of(model, prompts), use_cache=False)
    logits: torch.Tensor = output.logits[prompts.mask.bool()]
    return logits


def generate_greedily(
    model: Any, prompts: Prompts, *, use_cache: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue a batch greedily.

    Returns:
        Tokens (rows, `NEW_TOKENS`), and the logits that chose them (the same, vocabulary).
    """
    config = prompts.generation(NEW_TOKENS, use_cache=use_cache)
    config.update(output_logits=True, return_dict_in_generate=True)
    with frozen(model):
        output = model.generate(**inputs_of(model, prompts), generation_config=config)
    return output.sequences[:, prompts.ids.shape[1] :], torch.stack(output.logits, dim=1)


def share_tensors(model: Any) -> Any:
    """Return a second module tree over the same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name, a shared one under each of its names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the bits of every parameter and buffer, by name."""
    tensors = named_tensors(model)
    distinct = {id(tensor): tensor for tensor in tensors.values()}
    known = {key: _digest(tensor) for key, tensor in distinct.items()}
    return {name: known[id(tensor)] for name, tensor in tensors.items()}


def base_name(name: str) -> str:
    """The base's name of a tensor of a PEFT model; empty for one that was added."""
    if _ADDED.search(name):
        return ""
    inner = name.removeprefix(PEFT_PREFIX).replace(".original_module.", ".")
    return inner.replace(".base_layer.", ".")


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(raw(tensor).numpy().data).hexdigest()
