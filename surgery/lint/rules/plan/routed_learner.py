"""Rule L103: learners that a router mixes."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.diagnostics.wording import counted
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class RoutedLearner(PlanRule):
    """The operation `learner`: two low-rank attentions alongside a block's own, mixed by a router.

    ## Why is it bad?

    The router reads a row of the block's attention weights for each token, as long as the sequence:
    attention has to be written out, and the shapes grow with each token. The learners look at the
    prompt's image and text embeddings, whose number depends on the prompt, and have keys and values
    of their own in addition to the cache.

    ## Example

    `surgery lint wings --target snapdragon`.

    ## Use instead

    `op: duplicate` in every fourth block with `op: lora` in the rest, as `genieblue_skip` has it:
    static, with the stock cache, and the paper measures it above Wings. Or `op: expert` with `form:
    blend`.

    ## Evidence

    The paper counts Wings as a mixture of experts, which the NPUs of Dimensity 9400 and Snapdragon
    8 Elite could not run (arXiv 2503.06019, sections 3.2 and 4.2). Wings' released code has no
    cache of keys and values at all. No compiler was asked.
    """

    code = "L103"
    name = "routed-learner"
    evidence = "report"
    known_by = "arXiv 2503.06019, sections 3.2 and 4.2, read 2026-11-22"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        learners = subject.plan.learners()
        for operation in dict.fromkeys(edit.operation for edit in learners):
            edits = [edit for edit in learners if edit.operation == operation]
            yield self.finding(
                target,
                f"`{operation}` puts learners with a router into {counted(len(edits), 'block')}",
                why="the router weighs each token by its row of attention weights, which grows "
                "with the sequence, and what the learners look at depends on the prompt",
                fix="use `op: duplicate` with `op: lora` in the rest, as genieblue_skip has it",
                key=f"operations.{operation}.op",
                module=f"{edits[0].path}.learner.router",
            )
