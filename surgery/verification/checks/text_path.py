"""Whatever is trained, text runs on the untouched base."""

import torch

from surgery.model.numerics import largest_difference
from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.verification.runner import Check, Outcome
from surgery.verification.testbed import Bench, base_name, digests, generate_greedily


class TextPath(Check):
    """The text path gives the base's logits and tokens bit for bit, whatever the adapter holds.

    Both compute with the same tensors, threads and kernels, so no rounding is allowed for. All that
    may train is changed at random; the multimodal path must then differ from the base, or this
    check could not fail. Every tensor of the base still has the bits it was loaded with.
    """

    needs_paths = True

    def run(self, bench: Bench) -> Outcome:
        """Compare as stored and as changed at random; see `Check.run`."""
        faults = self._against_base(bench, "as stored")
        bench.shake()
        faults += self._against_base(bench, "after random changes")
        change = largest_difference(bench.logits(MULTIMODAL), bench.reference.logits)
        if not change:
            faults.append("the multimodal path ignores random changes of all that was added")
        found = {base_name(name): bits for name, bits in digests(bench.model).items()}
        wanted = bench.reference.digests
        touched = [name for name, bits in wanted.items() if found.get(name) != bits]
        if touched:
            faults.append(f"{len(touched)} tensors of the base have changed, {touched[0]} first")
        good = "logits, generated tokens and every tensor of the base are unchanged to the bit"
        return self.judge(faults, good, tensors=len(wanted), multimodal_difference=change)

    def _against_base(self, bench: Bench, when: str) -> list[str]:
        faults = []
        difference = largest_difference(bench.logits(TEXT), bench.reference.logits)
        if difference:
            faults.append(f"{when}, logits differ from the base's by {difference:.3g}")
        with bench.on(TEXT):
            tokens, _ = generate_greedily(bench.model, bench.prompts)
        if not torch.equal(tokens, bench.reference.tokens):
            faults.append(f"{when}, other tokens are generated than by the base")
        return faults
