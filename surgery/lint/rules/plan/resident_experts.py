"""Rule L104: experts that are in memory alongside what they are copies of."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.diagnostics.wording import counted
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.memory_footprint import edit_bytes, read_scheme
from surgery.npu.target import Target
from surgery.plan.summary import human_bytes


class ResidentExperts(PlanRule):
    """The operation `expert` in its `blend` or `segments` form, which compiles and takes memory.

    ## Why is it bad?

    Text and image tokens of one prompt use different matrices, so that both weight sets are in
    memory while the multimodal path runs. `blend` computes both for every token as well.

    ## Example

    `surgery lint cogvlm_full form=blend model=builtin/qwen2.5-3b`: experts in all 36 blocks add
    1.39 GB in W4A16 to 1.62 GB.

    ## Use instead

    `op: duplicate`: the copy takes the block's place, and the path is as large as the base.

    ## Evidence

    The bytes are counted. That CogVLM doubles the memory is the paper's finding as well (arXiv
    2503.06019, section 3.2).
    """

    code = "L104"
    name = "resident-experts"
    evidence = "report"
    known_by = "arXiv 2503.06019, section 3.2, read 2026-11-22; bytes counted from the plan"
    severity = "warning"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        static = [edit for edit in subject.plan.experts() if edit.rule.form != "gather"]
        scheme = read_scheme(subject.scheme)
        for operation in dict.fromkeys(edit.operation for edit in static):
            edits = [edit for edit in static if edit.operation == operation]
            size = human_bytes(sum(edit_bytes(edit, scheme) for edit in edits))
            twice = " and blend computes both" if edits[0].rule.form == "blend" else ""
            yield self.finding(
                target,
                f"both weight sets of {counted(len(edits), 'block')} stay in memory, +{size} in "
                f"{subject.scheme}",
                why=f"text and image tokens of one prompt use different matrices{twice}",
                fix="use `op: duplicate`, whose copies take the place of the blocks",
                key=f"operations.{operation}.form",
            )
