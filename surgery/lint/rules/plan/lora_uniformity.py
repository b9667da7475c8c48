"""Rule L107: low-rank pairs that a compiled graph can't switch."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target
from surgery.operations.edits import AddLora


class LoraUniformity(PlanRule):
    """LoRA of several ranks, on other matrices from block to block, or with a magnitude (DoRA).

    ## Why is it bad?

    Qualcomm's LoRA v2 compiles the base once and swaps the pairs at run time. All adapters of such
    a graph have the same rank and the same attachment points, and identical blocks share one
    compiled form. What differs means padding, or one more graph.

    ## Example

    Two operations `lora`, one with `rank: 8` on attention and one with `rank: 16` on the MLP.

    ## Use instead

    One rank and the same `modules` in every block that has LoRA; a lower rank is padded with zeros
    to the highest, which computes the same. No `use_dora`.

    ## Evidence

    docs.qualcomm.com 80-63442-10, LoRA v2: same architecture and attachment points, same maximal
    rank and precision. LoRA as inputs of the graph (v1) compiles and computes right with
    onnxruntime-qnn 2.7.0 in any rank.
    """

    code = "L107"
    name = "lora-uniformity"
    evidence = "doc"
    known_by = "docs.qualcomm.com 80-63442-10, lora_v2_0_overview, read 2026-11-22"
    severity = "warning"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        loras = subject.plan.loras()
        for what, fix in _differences(loras):
            yield self.finding(
                target,
                what,
                why="pairs that are switched at run time share one rank and the same modules",
                fix=fix,
                key=f"operations.{loras[-1].operation}",
            )


def _differences(loras: list[AddLora]) -> Iterator[tuple[str, str]]:
    """What differs, and what to do about it."""
    ranks = sorted({edit.rank for edit in loras})
    if len(ranks) > 1:
        yield (
            f"LoRA has the ranks {', '.join(map(str, ranks))}",
            f"use rank {ranks[-1]} for all, or let the export pad to it",
        )
    places: dict[int, set[str]] = {}
    for edit in loras:
        places.setdefault(edit.block, set()).add(edit.path.rpartition(".")[2])
    if len({frozenset(names) for names in places.values()}) > 1:
        yield (
            "LoRA is on other matrices from block to block",
            "name the same `modules` for all of these blocks",
        )
    if any(edit.is_dora for edit in loras):
        yield "DoRA's magnitudes are no part of a LoRA adapter", "take `use_dora` out"
