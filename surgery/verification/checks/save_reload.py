"""What is saved comes back, here and in plain peft."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from surgery.adapter.apply import open_adapter
from surgery.adapter.folder import load_base, save_adapter
from surgery.adapter.side_files import base_home
from surgery.adapter.weights_layout import check_weights
from surgery.model.numerics import Difference, largest_difference
from surgery.paths.path_state import MULTIMODAL
from surgery.verification.runner import Check, Outcome
from surgery.verification.testbed import Bench, answer, digests, share


class SaveReload(Check):
    """A saved adapter opens on the base with the same bits in every tensor and the same logits.

    All that was added is changed at random, saved to a temporary folder and opened on the same
    base again; then with `PeftModel.from_pretrained`, as one opens it who has no `surgery`, where
    the multimodal logits are the same and `disable_adapter()` gives the base's. What was read from
    a file lies elsewhere in memory, by which kernels may round otherwise: the outcome says whether
    these logits are the same bit for bit or up to rounding. An adapter with parts for image tokens
    must not open there, because it would open without them.
    """

    def run(self, bench: Bench) -> Outcome:
        """Save, open, compare; see `Check.run`."""
        bench.shake()
        expected, bits = bench.logits(MULTIMODAL), digests(bench.model)
        with tempfile.TemporaryDirectory(prefix="surgery-") as temporary:
            folder = Path(temporary) / "adapter"
            save_adapter(bench.plan, bench.model, folder)
            check_weights(bench.plan, folder, trust_remote_code=bench.trust_remote_code)
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            faults, found = _reopened(bench, folder, expected, bits)
            if bench.plan.is_routed:
                faults += _not_in_plain_peft(bench, folder)
            elif not bench.plan.in_place:
                others, plain = _in_plain_peft(bench, folder, expected)
                faults, found = faults + others, max(found, plain, key=lambda seen: seen.largest)
        same = "bit for bit" if found.is_zero else f"up to rounding ({found})"
        good = f"all {len(bits)} tensors come back to the bit, and the logits {same}"
        if bench.plan.is_routed:
            good += "; plain peft refuses the folder, whose parts it would drop"
        elif not bench.plan.in_place:
            good += ", also in plain peft"
        measured = {"tensors": len(bits), "bytes": size, "largest_difference": found.largest}
        return self.judge(faults, good, **measured)


def _reopened(
    bench: Bench, folder: Path, expected: torch.Tensor, bits: dict[str, str]
) -> tuple[list[str], Difference]:
    if bench.plan.in_place:
        trained = str(base_home(bench.plan, folder))
        base = load_base(trained, trust_remote_code=bench.trust_remote_code)
    else:
        base = share(bench.untouched)
    model: Any = open_adapter(bench.plan, base, folder, trainable=False).eval()
    held = digests(model)
    differ = [name for name in {**bits, **held} if bits.get(name) != held.get(name)]
    faults = [f"{len(differ)} tensors come back otherwise, {differ[0]} first"] if differ else []
    found = bench.sums.compare(answer(model, bench.prompts), expected)
    if not found.is_rounding:
        faults.append(f"the reopened adapter gives other logits, by {found}")
    return faults, found


def _not_in_plain_peft(bench: Bench, folder: Path) -> list[str]:
    from peft import PeftModel

    base = bench.decoder if bench.untouched is None else bench.untouched
    try:
        PeftModel.from_pretrained(share(base), str(folder))
    except Exception:  # whichever error it makes of a type that it doesn't know
        return []
    return ["plain peft opens the folder, without its parts for image tokens"]


def _in_plain_peft(
    bench: Bench, folder: Path, expected: torch.Tensor
) -> tuple[list[str], Difference]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(share(bench.untouched), str(folder)).eval()
    found = bench.sums.compare(answer(model, bench.prompts), expected)
    faults = [] if found.is_rounding else [f"plain peft gives other logits, by {found}"]
    with model.disable_adapter():
        text = answer(model, bench.prompts)
    if largest_difference(text, bench.reference.logits):
        faults.append("plain peft with the adapter disabled is not the base")
    return faults, found
