"""Rule L106: the memory of each path against the device."""

from collections.abc import Iterator, Sequence

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.memory_footprint import Footprint, footprints, parts_within, read_scheme
from surgery.npu.target import Fact, Target
from surgery.plan.summary import human_bytes


class MemoryRule(PlanRule):
    """Paths that the device can't hold, or only in several parts.

    Counted are the base, copies, LoRA, experts, vision tower and projector in the bits of the
    scheme, and keys and values at the context length; for the text path, the multimodal path, and
    both held at once. Activations are not counted.

    ## Why is it bad?

    A session of the NPU has an address space of its own, and a compiled graph a largest size. A
    model beyond that is split between blocks into several; a single block beyond it can't be split.
    Beyond the phone's memory nothing helps.

    ## Example

    `surgery lint lora model=builtin/qwen2.5-3b --scheme fp16 --target snapdragon`: 6.32 GB, in two
    sessions.

    ## Use instead

    Fewer bits (`--scheme w4a16`), a shorter context, a smaller base, or `duplicate` instead of
    `expert`.

    ## Evidence

    The limits are the target's, each with its source: users and maintainers report them; they did
    not show on x86-64. By the same sum GenieBlue on BlueLM-3B takes 1.95 GB, where the paper
    measures 2.10 GB (arXiv 2503.06019, table 9).
    """

    code = "L106"
    name = "memory"
    evidence = "report"
    known_by = "the target's limits"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        found = footprints(subject.plan, subject.context, read_scheme(subject.scheme))
        use = f"in {subject.scheme} at {subject.context:,} tokens"
        limits = target.limits
        yield from self._total(found, limits.memory_bytes, use, target)
        part = [fact for fact in (limits.graph_bytes, limits.session_bytes) if fact]
        if not part:
            return
        least = min(part, key=lambda fact: fact.value)
        yield from self._block(found, least, use, target)
        if limits.session_bytes:
            yield from self._parts(found, limits.session_bytes, least.value, use, target)

    def _total(
        self, found: Sequence[Footprint], limit: Fact[int] | None, use: str, target: Target
    ) -> Iterator[Finding]:
        over = [f for f in found if limit and f.total > limit.value]
        if limit and over:
            yield self.finding(
                target,
                f"{_listed(over)} {use}: the phone has {human_bytes(limit.value)}",
                why="weights, and keys and values, all stay in memory while a path runs",
                fix="use fewer bits, a shorter context, or a smaller base",
                key="model",
                fact=limit,
            )

    def _block(
        self, found: Sequence[Footprint], limit: Fact[int], use: str, target: Target
    ) -> Iterator[Finding]:
        largest, path = max((max(f.blocks, default=0), f.path) for f in found)
        if largest > limit.value:
            yield self.finding(
                target,
                f"one block of the {path} path takes {human_bytes(largest)} {use}",
                why=f"a part holds {human_bytes(limit.value)}, and is split between blocks",
                fix="use fewer bits, a shorter context, or a narrower base",
                key="model",
                fact=limit,
            )

    def _parts(
        self, found: Sequence[Footprint], session: Fact[int], part: int, use: str, target: Target
    ) -> Iterator[Finding]:
        over = [f for f in found if f.total > session.value]
        if not over:
            return
        split = [
            f"{f.path}: {parts_within(f.blocks, part)} graphs in "
            f"{parts_within(f.blocks, session.value)} sessions"
            for f in over
        ]
        yield self.finding(
            target,
            f"{_listed(over)} {use}: a session holds {human_bytes(session.value)}",
            why="each session of the NPU has an address space of its own",
            fix=f"split the decoder between blocks ({'; '.join(split)} at the least), or use fewer "
            "bits",
            key="model",
            severity="warning",
            fact=session,
        )


def _listed(found: Sequence[Footprint]) -> str:
    """Such as `the paths take text 6.25 GB, multimodal 6.27 GB`."""
    sizes = ", ".join(f"{f.path} {human_bytes(f.total)}" for f in found)
    return f"the path{'s' * (len(found) > 1)} {sizes}"
