"""Whatever is trained, text runs on the untouched base."""

import torch

from surgery.model.numerics import largest_difference
from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.verification.context import (
    VerificationContext,
    base_name,
    generate_greedily,
    tensor_digests,
)
from surgery.verification.runner import Check, Outcome


class TextPath(Check):
    """The text path gives the base's logits and tokens bit for bit, whatever the adapter's weights.

    Both compute with the same tensors, threads and kernels, so no rounding is allowed for. All that
    may train is changed at random; the multimodal path must then differ from the base, or this
    check could not fail. Every tensor of the base still has the bits it was loaded with.
    """

    needs_paths = True

    def run(self, context: VerificationContext) -> Outcome:
        """Compare as stored and as changed at random; see `Check.run`."""
        failures = self._against_base(context, "as stored")
        context.perturb()
        failures += self._against_base(context, "after random changes")
        change = largest_difference(context.logits(MULTIMODAL), context.reference.logits)
        if not change:
            failures.append("the multimodal path ignores random changes of all that was added")
        found = {base_name(name): bits for name, bits in tensor_digests(context.model).items()}
        wanted = context.reference.digests
        touched = [name for name, bits in wanted.items() if found.get(name) != bits]
        if touched:
            failures.append(f"{len(touched)} tensors of the base have changed, {touched[0]} first")
        success = "logits, generated tokens and every tensor of the base are unchanged to the bit"
        return self.judge(failures, success, tensors=len(wanted), multimodal_difference=change)

    def _against_base(self, context: VerificationContext, when: str) -> list[str]:
        failures = []
        difference = largest_difference(context.logits(TEXT), context.reference.logits)
        if difference:
            failures.append(f"{when}, logits differ from the base's by {difference:.3g}")
        with context.on(TEXT):
            tokens, _ = generate_greedily(context.model, context.prompts)
        if not torch.equal(tokens, context.reference.tokens):
            failures.append(f"{when}, other tokens are generated than by the base")
        return failures
