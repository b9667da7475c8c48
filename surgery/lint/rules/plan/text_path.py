"""Rule L111: a recipe whose text path is another whole model."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.memory_footprint import quantized_bytes, read_scheme
from surgery.npu.target import Target
from surgery.plan.summary import human_bytes


class TextPathRule(PlanRule):
    """A recipe that changes the base in place, and so has no text path of its own.

    ## Why is it bad?

    The text path is then the stored original: a second whole decoder on the phone, or answers to
    text that are worse than the base's. In the paper full fine-tuning keeps 78 to 85 % of the text
    accuracy.

    ## Example

    `surgery lint full_finetune --target snapdragon`.

    ## Use instead

    `genieblue_skip`: copies and LoRA alongside an untouched base, whose text path is the base
    itself, bit for bit. Nothing, if this model is not to answer plain text.

    ## Evidence

    The plan; the accuracy is the paper's (arXiv 2503.06019, tables 4 and 6).
    """

    code = "L111"
    name = "text-path"
    evidence = "report"
    known_by = "arXiv 2503.06019, tables 4 and 6, read 2026-11-22; bytes counted from the plan"
    severity = "warning"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        plan = subject.plan
        if plan.has_text_path:
            return
        decoder = set(plan.anatomy.names_in("decoder"))
        tensors = [t for t in plan.anatomy.tensors() if t.name in decoder]
        size = quantized_bytes(tensors, read_scheme(subject.scheme).decoder)
        yield self.finding(
            target,
            "the base changes in place, so that the text path is a second whole model",
            why=f"the stored original takes {human_bytes(size)} more in {subject.scheme}",
            fix="copy blocks with `op: duplicate` and add `op: lora`, as genieblue_skip does; or "
            "leave the original out where plain text doesn't matter",
            key="operations" if plan.changes_depth else "train",
        )
