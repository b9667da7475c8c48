"""Exactly what the plan trains gets gradients."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from surgery.adapter.apply import trainable_parameters
from surgery.paths.path_state import MULTIMODAL
from surgery.storage.file_names import ADAPTER
from surgery.verification.context import VerificationContext, base_name, inputs_of, tensor_digests
from surgery.verification.prompts import Prompts
from surgery.verification.runner import Check, Outcome

_STEPS: Final = 2
_RATE: Final = 1e-2
_COPY: Final = re.compile(rf"\.(modules_to_save|expert)\.{ADAPTER}\.")


class Gradients(Check):
    """Exactly the planned parameters get gradients, and two optimizer steps change nothing else.

    B starts at zero, and A's gradient with it, so all that was added is changed at random first.
    Then every planned parameter must get a gradient and no other may, except those whose original
    gets none in the base either, such as the attention to a missing encoder. After two steps of
    AdamW every other parameter and buffer is unchanged bit for bit.
    """

    def run(self, context: VerificationContext) -> Outcome:
        """Train two steps on the prompts; see `Check.run`."""
        context.perturb()
        planned = {name for name, _ in trainable_parameters(context.plan, context.model)}
        before = tensor_digests(context.model)
        optimizer = torch.optim.AdamW(
            [p for p in context.model.parameters() if p.requires_grad], lr=_RATE, foreach=False
        )
        _backward(context)
        named = dict(context.model.named_parameters())
        got = {name for name, p in named.items() if p.grad is not None}
        unused = _unused(context, planned - got)
        failures = _failures(planned - unused, got)
        zero = [n for n in planned if named[n].grad is not None and not named[n].grad.any()]
        optimizer.step()
        for _ in range(_STEPS - 1):
            optimizer.zero_grad()
            _backward(context)
            optimizer.step()
        after = tensor_digests(context.model)
        changed = {name for name, bits in after.items() if bits != before[name]}
        others = sorted(changed - planned - set(_aliases(context, planned)))
        if others:
            failures.append(
                f"{len(others)} tensors that don't train have changed, {others[0]} first"
            )
        if not changed & planned:
            failures.append("no parameter that trains has changed")
        success = (
            f"the {len(planned)} planned parameters get gradients, and no other tensor changes"
        )
        if unused:
            success += f"; {len(unused)} belong to what the base itself doesn't use here"
        measured = {"zero_gradients": len(zero), "changed": len(changed & planned)}
        return self.judge(failures, success, planned=len(planned), tensors=len(after), **measured)


def _backward(context: VerificationContext) -> None:
    with context.on(MULTIMODAL):
        _loss(context.model, context.prompts).backward()  # type: ignore[no-untyped-call]


def _loss(model: Any, prompts: Prompts) -> torch.Tensor:
    """Loss of the next token; not the model's own, which some models only have with an image."""
    logits = model(**inputs_of(model, prompts), use_cache=False).logits[:, :-1]
    labels = prompts.ids.masked_fill(prompts.mask == 0, -100)[:, 1:]
    loss: torch.Tensor = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten()
    )
    return loss


def _unused(context: VerificationContext, names: set[str]) -> set[str]:
    """Those of the planned parameters whose originals take no part in the loss of the base."""
    if not names:
        return set()
    base = context.model if context.plan.is_plain else context.untouched
    if base is None:  # trains in place together with added parts: nothing to compare with
        return set()
    tensors = dict(base.named_parameters())
    trains = {name: p.requires_grad for name, p in tensors.items()}
    base.requires_grad_(True)
    with _called(base) as called:
        loss = _loss(base, context.prompts)
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    for name, parameter in tensors.items():
        parameter.requires_grad_(trains[name])
    without = {name for name, gradient in zip(tensors, found, strict=True) if gradient is None}
    tied = context.plan.anatomy.tied
    shared = {*tied, *tied.values()}

    def is_unused(original: str) -> bool:
        # a shared parameter may be another block's, which a copy of this one has no part in
        idle = original in shared and original.rpartition(".")[0] not in called
        return idle or tied.get(original, original) in without

    return {name for name in names if is_unused(_original(name))}


@contextmanager
def _called(model: nn.Module) -> Iterator[set[str]]:
    """Record the names of all modules that are called meanwhile."""
    called: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: called.add(name))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _original(name: str) -> str:
    """The base's parameter that an added one is a copy of, or belongs to."""
    if ".lora_" in name:
        return base_name(f"{name.partition('.lora_')[0]}.weight")
    return base_name(_COPY.sub(".", name)) or name


def _failures(planned: set[str], got: set[str]) -> list[str]:
    failures = []
    without, surplus = sorted(planned - got), sorted(got - planned)
    if without:
        failures.append(f"{len(without)} planned parameters get no gradient, {without[0]} first")
    if surplus:
        failures.append(f"{len(surplus)} other parameters get a gradient, {surplus[0]} first")
    return failures


def _aliases(context: VerificationContext, planned: set[str]) -> list[str]:
    """Other names of planned parameters that are shared, as tied embeddings are."""
    named = list(context.model.named_parameters(remove_duplicate=False))
    ids = {id(parameter) for name, parameter in named if name in planned}
    return [name for name, parameter in named if id(parameter) in ids]
