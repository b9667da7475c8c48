"""Generation with the key-value cache is generation without it."""

from typing import Any

from surgery.adapter.folder import load_base
from surgery.model.numerics import Difference
from surgery.verification.context import NEW_TOKENS, VerificationContext, generate_greedily
from surgery.verification.prompts import Prompts
from surgery.verification.runner import Check, Outcome


class CachedGeneration(Check):
    """Greedy generation with a cache gives what it gives without, on each path.

    Two blocks that write to one cache layer, or a copy with another block's index, fail here and
    nowhere else. One prompt alone and a left-padded batch are continued by 16 tokens, with all that
    was added changed at random. Tokens must agree, and the logits that chose them too, up to the
    rounding that dtype, depth and width explain; only then is another token a tie. Where the base
    itself differs by more, which then is the model's own, nothing is asked of the adapter, and the
    outcome says so.
    """

    def run(self, context: VerificationContext) -> Outcome:
        """Generate twice on each path and compare; see `Check.run`."""
        context.perturb()
        failures: list[str] = []
        uncertain: list[str] = []
        worst, ties = Difference(0.0, 0.0), 0
        batches = {"one prompt": context.prompts.alone(0), "a left-padded batch": context.prompts}
        for path in context.paths:
            for batch, prompts in batches.items():
                with context.on(path):
                    found, tied = _compare(context, context.model, prompts)
                worst, ties = max(worst, found, key=lambda each: each.largest), ties + tied
                if not found.is_rounding and _base_differs(context, prompts):
                    uncertain.append(batch)
                elif not found.is_rounding:
                    failures.append(
                        f"on the {path} path, {batch}: logits with and without the cache differ "
                        f"by {found}"
                    )
        success = f"{NEW_TOKENS} tokens with the cache are those without, {len(context.paths)} path"
        success += "s" if len(context.paths) > 1 else ""
        if uncertain:
            names = " and ".join(dict.fromkeys(uncertain))
            success = f"undecided for {names}: the base itself differs with its cache and without"
        measured = {
            "largest_difference": worst.largest,
            "tolerance": worst.explained,
            "ties": ties,
        }
        return self.judge(failures, success, **measured)


def _base_differs(context: VerificationContext, prompts: Prompts) -> bool:
    """Whether the untouched base fails in the same way."""
    base = context.untouched
    if base is None:
        assert context.plan.files is not None
        base_folder = str(context.plan.files.folder)
        base = load_base(base_folder, trust_remote_code=context.trust_remote_code).eval()
    return not _compare(context, base, prompts)[0].is_rounding


def _compare(context: VerificationContext, model: Any, prompts: Prompts) -> tuple[Difference, int]:
    """The largest difference of logits until tokens diverge, and how many rows diverge."""
    cached, logits = generate_greedily(model, prompts)
    plain, wanted = generate_greedily(model, prompts, use_cache=False)
    parted = (cached != plain).int().cumsum(dim=1)
    # a token is chosen by the logits of its own step, so the step where they diverge still compares
    comparable = parted.cumsum(dim=1) <= 1
    found = context.sums.compare(logits[comparable], wanted[comparable])
    return found, int((parted[:, -1] > 0).sum())
