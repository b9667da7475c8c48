"""Rule L102: experts whose tokens are taken by index."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.diagnostics.wording import counted
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class RoutedExpert(PlanRule):
    """The operation `expert` in its `gather` form, which `form: auto` means.

    ## Why is it bad?

    It takes the image tokens out of the sequence by index. How many there are depends on the
    prompt, so the shapes behind it do as well, and the NPU's compiler takes static shapes alone.
    CogVLM's own code does the same with boolean indexing.

    ## Example

    `surgery lint cogvlm_skip --target snapdragon`. Of the 142 nodes of a two-block decoder with
    CogVLM's boolean indexing, 48 stayed on the CPU, from `NonZero` on: `NonZero output shape must
    be static`.

    ## Use instead

    `op: duplicate`: a copied block takes all tokens and keeps the memory of the base. Or `form:
    blend`, which computes both and mixes them by the mask, or `form: segments` with `runs`, for an
    image that always stands at the same position. Both compile whole and compute right; both keep
    the two weight sets in memory (`resident-experts`).

    ## Evidence

    onnxruntime-qnn 2.7.0, 2026-11-22: it refuses `NonZero` without a static shape for four
    Snapdragons; the decoders were compiled for V79 and run in the emulator. For MediaTek the public
    operator table has no Gather, Scatter or Where.
    """

    code = "L102"
    name = "routed-expert"
    evidence = "proved"
    known_by = "onnxruntime-qnn 2.7.0 (QAIRT 2.51.0), soc 43, 57, 69 and 87, 2026-11-22"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        gathering = [edit for edit in subject.plan.experts() if edit.rule.form == "gather"]
        for operation in dict.fromkeys(edit.operation for edit in gathering):
            edits = [edit for edit in gathering if edit.operation == operation]
            form = f"operations.{operation}.form"
            yield self.finding(
                target,
                f"`{operation}` takes the image tokens of {counted(len(edits), 'block')} by index",
                why="how many there are depends on the prompt, and the NPU takes static shapes",
                fix=f"use `op: duplicate`, or set `{form}: blend` or `{form}: segments`, which "
                "keep both weight sets in memory",
                key=form,
                module=edits[0].matrices[0],
                fact=target.operators.table,
                edit=(form, "blend"),
            )
