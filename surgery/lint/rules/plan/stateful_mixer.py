"""Rule L112: blocks that carry a state instead of keys and values."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class StatefulMixer(PlanRule):
    """Blocks with a state space, linear attention, a recurrence or a convolution over tokens.

    ## Why is it bad?

    Not known to be: no such block was compiled. A prompt is read by a scan over its tokens, which
    is a loop or a kernel of its own in most code, and the state is one more input and output.

    ## Example

    Mamba, Jamba, Qwen3-Next, LFM2, RecurrentGemma, RWKV.

    ## Use instead

    A base with attention in every block, or proof: `--prove`, and an export of your own where
    torch.export doesn't get through the scan.

    ## Evidence

    The documentation of onnxruntime's QNN execution provider says that loops are not supported, and
    `Loop` is refused by 2.7.0. Nothing was found on a phone's NPU running such a block.
    """

    code = "L112"
    name = "stateful-mixer"
    evidence = "doc"
    known_by = "onnxruntime-qnn docs/execution_providers/QNN-ExecutionProvider.md, read 2026-11-22"
    severity = "warning"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        anatomy = subject.plan.result
        blocks = anatomy.blocks_with("mixer")
        if not blocks:
            return
        kind = anatomy.block(blocks[0])
        first = next(matrix for matrix in kind.matrices if matrix.part == "mixer")
        yield self.finding(
            target,
            f"{len(blocks)} of {anatomy.count} blocks of {anatomy.source} carry a state",
            why="a scan over tokens is a loop in most code; no such block was compiled here",
            fix="name a base with attention in every block, or prove it with `--prove`",
            key="model",
            module=f"{anatomy.block_path(blocks[0])}.{first.name.partition('.')[0]}",
        )
