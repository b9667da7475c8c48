"""What is saved is loaded again, here and in plain peft."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from surgery.adapter.apply import open_adapter
from surgery.adapter.folder import load_base, save_adapter
from surgery.adapter.side_files import base_folder
from surgery.adapter.weights_layout import check_weights
from surgery.model.numerics import Difference, largest_difference
from surgery.paths.path_state import MULTIMODAL
from surgery.verification.context import (
    VerificationContext,
    forward_logits,
    share_tensors,
    tensor_digests,
)
from surgery.verification.runner import Check, Outcome


class SaveReload(Check):
    """A saved adapter loads onto the base with the same bits in every tensor and the same logits.

    All that was added is changed at random, saved to a temporary folder and loaded onto the same
    base again; then with `PeftModel.from_pretrained`, as without `surgery`, where the multimodal
    logits are the same and `disable_adapter()` gives the base's. Tensors from a file have other
    addresses in memory, by which kernels may round differently: the outcome says whether these
    logits are the same bit for bit or up to rounding. An adapter with parts for image tokens must
    not load there, because it would load without them.
    """

    def run(self, context: VerificationContext) -> Outcome:
        """Save, open, compare; see `Check.run`."""
        context.perturb()
        expected, bits = context.logits(MULTIMODAL), tensor_digests(context.model)
        with tempfile.TemporaryDirectory(prefix="surgery-") as temporary:
            folder = Path(temporary) / "adapter"
            save_adapter(context.plan, context.model, folder)
            check_weights(context.plan, folder, trust_remote_code=context.trust_remote_code)
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
            failures, found = _reopened(context, folder, expected, bits)
            if context.plan.is_routed:
                failures += _not_in_plain_peft(context, folder)
            elif not context.plan.in_place:
                others, plain = _in_plain_peft(context, folder, expected)
                failures, found = (
                    failures + others,
                    max(found, plain, key=lambda each: each.largest),
                )
        same = "bit for bit" if found.is_zero else f"up to rounding ({found})"
        success = f"all {len(bits)} tensors are loaded bit for bit, and the logits {same}"
        if context.plan.is_routed:
            success += "; plain peft refuses the folder, whose parts it would drop"
        elif not context.plan.in_place:
            success += ", also in plain peft"
        measured = {"tensors": len(bits), "bytes": size, "largest_difference": found.largest}
        return self.judge(failures, success, **measured)


def _reopened(
    context: VerificationContext, folder: Path, expected: torch.Tensor, bits: dict[str, str]
) -> tuple[list[str], Difference]:
    if context.plan.in_place:
        trained = str(base_folder(context.plan, folder))
        base = load_base(trained, trust_remote_code=context.trust_remote_code)
    else:
        base = share_tensors(context.untouched)
    model: Any = open_adapter(context.plan, base, folder, trainable=False).eval()
    tensors = tensor_digests(model)
    differ = [name for name in {**bits, **tensors} if bits.get(name) != tensors.get(name)]
    failures = (
        [f"{len(differ)} tensors are loaded with other values, {differ[0]} first"] if differ else []
    )
    found = context.sums.compare(forward_logits(model, context.prompts), expected)
    if not found.is_rounding:
        failures.append(f"the reopened adapter gives other logits, by {found}")
    return failures, found


def _not_in_plain_peft(context: VerificationContext, folder: Path) -> list[str]:
    from peft import PeftModel

    base = context.decoder if context.untouched is None else context.untouched
    try:
        PeftModel.from_pretrained(share_tensors(base), str(folder))
    except Exception:  # whichever error it makes of a type that it doesn't know
        return []
    return ["plain peft opens the folder, without its parts for image tokens"]


def _in_plain_peft(
    context: VerificationContext, folder: Path, expected: torch.Tensor
) -> tuple[list[str], Difference]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(share_tensors(context.untouched), str(folder)).eval()
    found = context.sums.compare(forward_logits(model, context.prompts), expected)
    failures = [] if found.is_rounding else [f"plain peft gives other logits, by {found}"]
    with model.disable_adapter():
        text = forward_logits(model, context.prompts)
    if largest_difference(text, context.reference.logits):
        failures.append("plain peft with the adapter disabled is not the base")
    return failures, found
