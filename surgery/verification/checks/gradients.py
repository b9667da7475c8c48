"""What the plan trains, and nothing else, learns."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from surgery.adapter.apply import trainable_parameters
from surgery.paths.path_state import MULTIMODAL
from surgery.storage.file_names import ADAPTER
from surgery.verification.prompts import Prompts
from surgery.verification.runner import Check, Outcome
from surgery.verification.testbed import Bench, base_name, digests, inputs_of

_STEPS: Final = 2
_RATE: Final = 1e-2
_COPY: Final = re.compile(rf"\.(modules_to_save|expert)\.{ADAPTER}\.")


class Gradients(Check):
    """Exactly the planned parameters get gradients, and two optimizer steps change nothing else.

    B starts at zero, and A's gradient with it, so all that was added is changed at random first.
    Then every planned parameter must get a gradient and no other may, but for those whose original
    gets none in the base either, such as the attention to an encoder that isn't there. After two
    steps of AdamW every other parameter and buffer has the bits it had.
    """

    def run(self, bench: Bench) -> Outcome:
        """Train two steps on the prompts; see `Check.run`."""
        bench.shake()
        planned = {name for name, _ in trainable_parameters(bench.plan, bench.model)}
        before = digests(bench.model)
        optimizer = torch.optim.AdamW(
            [p for p in bench.model.parameters() if p.requires_grad], lr=_RATE, foreach=False
        )
        _backward(bench)
        named = dict(bench.model.named_parameters())
        got = {name for name, p in named.items() if p.grad is not None}
        unused = _unused(bench, planned - got)
        faults = _faults(planned - unused, got)
        zero = [n for n in planned if named[n].grad is not None and not named[n].grad.any()]
        optimizer.step()
        for _ in range(_STEPS - 1):
            optimizer.zero_grad()
            _backward(bench)
            optimizer.step()
        after = digests(bench.model)
        changed = {name for name, bits in after.items() if bits != before[name]}
        others = sorted(changed - planned - set(_aliases(bench, planned)))
        if others:
            faults.append(f"{len(others)} tensors that don't train have changed, {others[0]} first")
        if not changed & planned:
            faults.append("no parameter that trains has changed")
        good = f"the {len(planned)} planned parameters get gradients, and no other tensor changes"
        if unused:
            good += f"; {len(unused)} belong to what the base itself doesn't use here"
        measured = {"zero_gradients": len(zero), "changed": len(changed & planned)}
        return self.judge(faults, good, planned=len(planned), tensors=len(after), **measured)


def _backward(bench: Bench) -> None:
    with bench.on(MULTIMODAL):
        _loss(bench.model, bench.prompts).backward()  # type: ignore[no-untyped-call]


def _loss(model: Any, prompts: Prompts) -> torch.Tensor:
    """Of the next token; not the model's own, which some models only have beside an image."""
    logits = model(**inputs_of(model, prompts), use_cache=False).logits[:, :-1]
    labels = prompts.ids.masked_fill(prompts.mask == 0, -100)[:, 1:]
    loss: torch.Tensor = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten()
    )
    return loss


def _unused(bench: Bench, names: set[str]) -> set[str]:
    """Those of the planned parameters whose originals take no part in the loss of the base."""
    if not names:
        return set()
    base = bench.model if bench.plan.is_plain else bench.untouched
    if base is None:  # trains in place beside what was added: nothing to compare with
        return set()
    held = dict(base.named_parameters())
    trains = {name: p.requires_grad for name, p in held.items()}
    base.requires_grad_(True)
    with _called(base) as called:
        loss = _loss(base, bench.prompts)
    found = torch.autograd.grad(loss, list(held.values()), allow_unused=True)
    for name, parameter in held.items():
        parameter.requires_grad_(trains[name])
    without = {name for name, gradient in zip(held, found, strict=True) if gradient is None}
    tied = bench.plan.anatomy.tied
    shared = {*tied, *tied.values()}

    def is_unused(original: str) -> bool:
        # a shared parameter may be another block's, which a copy of this one has no part in
        idle = original in shared and original.rpartition(".")[0] not in called
        return idle or tied.get(original, original) in without

    return {name for name in names if is_unused(_original(name))}


@contextmanager
def _called(model: nn.Module) -> Iterator[set[str]]:
    """Note the names of all modules that are called meanwhile."""
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
    """The base's parameter of which one that was added is a copy, or beside which it is."""
    if ".lora_" in name:
        return base_name(f"{name.partition('.lora_')[0]}.weight")
    return base_name(_COPY.sub(".", name)) or name


def _faults(planned: set[str], got: set[str]) -> list[str]:
    faults = []
    without, surplus = sorted(planned - got), sorted(got - planned)
    if without:
        faults.append(f"{len(without)} planned parameters get no gradient, {without[0]} first")
    if surplus:
        faults.append(f"{len(surplus)} other parameters get a gradient, {surplus[0]} first")
    return faults


def _aliases(bench: Bench, planned: set[str]) -> list[str]:
    """Other names of planned parameters that are shared, as tied embeddings are."""
    named = list(bench.model.named_parameters(remove_duplicate=False))
    ids = {id(parameter) for name, parameter in named if name in planned}
    return [name for name, parameter in named if id(parameter) in ids]
