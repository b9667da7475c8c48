"""Generation with the key-value cache is generation without it."""

from typing import Any, Final

import torch

from surgery.adapter import load_base
from surgery.bench import NEW_TOKENS, Bench, generate
from surgery.prompts import Prompts
from surgery.verify import Check, Outcome

_EPSILONS: Final = 4
_SMALLEST: Final = 1e-4


class CachedGeneration(Check):
    """Greedy generation with a cache gives what it gives without, on each path.

    Two blocks that write to one cache slot, or a copy with another block's index, go wrong here
    and nowhere else. One prompt alone and a left-padded batch are continued by 16 tokens, with all
    that was added changed at random. Tokens must agree, and the logits that chose them too, up to
    the rounding of the dtype (4 epsilons of the largest logit, at least 1e-4 of it); only where
    they do is another token a tie. Where the base itself differs by more, which then is the
    model's own, nothing is asked of the adapter, and the outcome says so.
    """

    def run(self, bench: Bench) -> Outcome:
        """Generate twice on each path and compare; see `Check.run`."""
        bench.shake()
        faults: list[str] = []
        uncertain: list[str] = []
        largest, ties, tolerance = 0.0, 0, 0.0
        batches = {"one prompt": bench.prompts.alone(0), "a left-padded batch": bench.prompts}
        for path in bench.paths:
            for batch, prompts in batches.items():
                with bench.on(path):
                    found, tolerance, tied = _compare(bench, bench.model, prompts)
                largest, ties = max(largest, found), ties + tied
                if not found <= tolerance and _base_differs(bench, prompts):
                    uncertain.append(batch)
                elif not found <= tolerance:
                    faults.append(
                        f"on the {path} path, {batch}: logits with and without the cache differ "
                        f"by {found:.3g}, where rounding explains {tolerance:.3g}"
                    )
        good = f"{NEW_TOKENS} tokens with the cache are those without, {len(bench.paths)} path"
        good += "s" if len(bench.paths) > 1 else ""
        if uncertain:
            names = " and ".join(dict.fromkeys(uncertain))
            good = f"not told for {names}: the base itself differs with its cache and without"
        measured = {"largest_difference": largest, "tolerance": tolerance, "ties": ties}
        return self.judge(faults, good, **measured)


def _base_differs(bench: Bench, prompts: Prompts) -> bool:
    """Whether the untouched base fails in the same way."""
    base = bench.untouched
    if base is None:
        assert bench.plan.files is not None
        home = str(bench.plan.files.folder)
        base = load_base(home, trust_remote_code=bench.trust_remote_code).eval()
    found, tolerance, _ = _compare(bench, base, prompts)
    return not found <= tolerance


def _compare(bench: Bench, model: Any, prompts: Prompts) -> tuple[float, float, int]:
    """The greatest difference of logits up to where tokens part, its tolerance, and rows parted."""
    cached, logits = generate(model, prompts)
    plain, wanted = generate(model, prompts, use_cache=False)
    parted = (cached != plain).int().cumsum(dim=1)
    # a token is chosen by the logits of its own step, so the step where they part still compares
    comparable = parted.cumsum(dim=1) <= 1
    difference = (logits.float() - wanted.float()).abs().amax(dim=2)[comparable].max().item()
    epsilon = torch.finfo(bench.reference.logits.dtype).eps  # generate returns fp32
    relative = max(_EPSILONS * epsilon, _SMALLEST)
    scale = wanted.float()[comparable].abs().max().item()
    return difference, relative * scale, int((parted[:, -1] > 0).sum())
