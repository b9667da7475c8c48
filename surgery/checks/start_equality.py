"""At its start, an adapter changes nothing."""

import torch

from surgery.bench import Bench, digests, largest_difference
from surgery.paths import TEXT
from surgery.verify import Check, Outcome


class StartEquality(Check):
    """Both paths give the base's logits, bit for bit, when all that was added is at its start.

    A trained adapter is set back for this check: copies as their originals, B zero. LoRA then adds
    zeros, which changes no bit in any type. Where a recipe trains the base in place, what it
    leaves frozen is compared with the stored original instead.
    """

    def run(self, bench: Bench) -> Outcome:
        """Set all to its start and compare; see `Check.run`."""
        if bench.plan.in_place:
            return self._in_place(bench)
        if any(t.start == "weights" for edit in bench.plan.edits for t in edit.tensors):
            return self.skip(
                "the start is computed from the base's weights, and can't be made anew"
            )
        bench.start_over()
        at_start = bench.is_at_start()
        faults, measured = [], {}
        for path in bench.paths:
            difference = largest_difference(bench.logits(path), bench.reference.logits)
            measured[path] = difference
            if difference:
                faults.append(
                    f"the {path} path differs from the base by {difference:.3g} in logits"
                )
        state = "is at its start" if at_start else "is trained, and was set back to its start"
        good = f"both paths give the base's logits bit for bit; the stored adapter {state}"
        return self.judge(faults, good, stored_at_start=at_start, **measured)

    def _in_place(self, bench: Bench) -> Outcome:
        """Compare with the stored original, tensor by tensor."""
        found, wanted = digests(bench.model), bench.reference.digests
        planned = set(bench.changeable())
        aliases = bench.plan.anatomy.tied
        differ = [name for name, bits in wanted.items() if found.get(name) != bits]
        frozen = [name for name in differ if aliases.get(name, name) not in planned]
        faults = (
            [f"{len(frozen)} frozen tensors differ from the stored original, {frozen[0]} first"]
            if frozen
            else []
        )
        same = torch.equal(bench.logits(TEXT), bench.reference.logits)
        if not differ and not same:
            faults.append("the logits differ, though no tensor does")
        good = f"{len(differ)} of {len(wanted)} tensors were trained, all of them planned"
        if not differ:
            good = "the folder is at its start, its logits are the stored original's bit for bit"
        return self.judge(faults, good, stored_at_start=not differ, tensors_changed=len(differ))
