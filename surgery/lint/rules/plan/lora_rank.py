"""Rule L110: a rank beyond the device's."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class LoraRank(PlanRule):
    """LoRA of a higher rank than the target switches at run time.

    ## Why is it bad?

    The compiled graph has room for pairs of one largest rank. Above it the pairs don't fit in.

    ## Example

    A target with `limits.lora_rank: {value: 32, …}` and a recipe with `rank: 64`.

    ## Use instead

    A rank up to the limit; the paper has 8 in all experiments. Or merge the pairs into copies of
    the blocks, which is what `duplicate` is for.

    ## Evidence

    The target's fact, with its source. Qualcomm publishes no largest rank, so that the packaged
    targets name none and this rule is silent on them.
    """

    code = "L110"
    name = "lora-rank"
    evidence = "doc"
    known_by = "the target's limits"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        limit = target.limits.lora_rank
        over = {
            edit.operation: edit.rank
            for edit in subject.plan.loras()
            if limit and edit.rank > limit.value
        }
        for operation, rank in over.items():
            assert limit is not None
            key = f"operations.{operation}.rank"
            yield self.finding(
                target,
                f"`{operation}` has rank {rank}, and pairs up to {limit.value} are switched here",
                fix=f"set `{key}: {limit.value}`",
                key=key,
                fact=limit,
                edit=(key, str(limit.value)),
            )
