"""Rule L109: a context that is longer than what is known to run."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.memory_footprint import positions_of
from surgery.npu.target import Target


class Context(PlanRule):
    """More tokens than the model was made for, or than are known to be in use on the device.

    ## Why is it bad?

    A static cache has room for all tokens from the start: its memory and the time of each token
    grow with the context, whether it is used or not. Beyond its positions a model answers badly, or
    fails.

    ## Example

    `surgery lint lora --context 32768 --target snapdragon`.

    ## Use instead

    `--context 2048`, with which the paper deploys, or 4096, the longest that is published for a 3B
    model on these chips.

    ## Evidence

    The target's fact, with its source; and the model's own config.json.
    """

    code = "L109"
    name = "context"
    evidence = "doc"
    known_by = "the model's config.json"
    severity = "warning"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        longest = target.limits.context_tokens
        if longest and subject.context > longest.value:
            yield self.finding(
                target,
                f"{subject.context:,} tokens of context are more than are known to be in use here",
                why=f"the longest known is {longest.value:,}, and a static cache holds them all",
                fix=f"use `--context {longest.value}` or less, or measure on the phone",
                fact=longest,
            )
        made_for = positions_of(subject.plan)
        if made_for and subject.context > made_for:
            yield self.finding(
                target,
                f"{subject.plan.anatomy.source} is made for {made_for:,} tokens, and the cache is "
                f"counted for {subject.context:,}",
                fix=f"use `--context {made_for}` or less",
                key="model",
                severity="note",
            )
