"""What the plan trains, and nothing else, learns."""

from typing import Final

import torch

from surgery.apply import trainable_parameters
from surgery.bench import Bench, digests, inputs_of
from surgery.switch import MULTIMODAL
from surgery.verify import Check, Outcome

_STEPS: Final = 2
_RATE: Final = 1e-2


class Gradients(Check):
    """Exactly the planned parameters get gradients, and two optimizer steps change nothing else.

    B starts at zero, and A's gradient with it, so all that was added is changed at random first.
    Then every planned parameter must get a gradient and no other may. After two steps of AdamW
    every other parameter and buffer has the bits it had.
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
        faults = _faults(planned, {name for name, p in named.items() if p.grad is not None})
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
        measured = {"zero_gradients": len(zero), "changed": len(changed & planned)}
        return self.judge(faults, good, planned=len(planned), tensors=len(after), **measured)


def _backward(bench: Bench) -> None:
    prompts = bench.prompts
    labels = prompts.ids.masked_fill(prompts.mask == 0, -100)
    with bench.on(MULTIMODAL):
        inputs = inputs_of(bench.model, prompts)
        bench.model(**inputs, labels=labels, use_cache=False).loss.backward()


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
