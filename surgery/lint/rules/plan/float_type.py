"""Rule L113: floats that the NPU doesn't compute in."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class FloatType(PlanRule):
    """Deployment in fp16 on a chip without it, or of weights that were trained in bf16.

    ## Why is it bad?

    Some mid-range chips have no fp16 at all. And bf16 reaches 3e38, fp16 only 65,504: what exceeds
    that in a model trained in bf16 becomes infinite, most often in the residual stream.

    ## Example

    `surgery lint lora model=builtin/qwen2.5-3b --scheme fp16 --target snapdragon`.

    ## Use instead

    `--scheme w4a16` or `w8a16`, whose activations are 16-bit integers with a scale of their own.
    For fp16, compare with the base first: `--prove` does for one block of each kind.

    ## Evidence

    onnxruntime-qnn 2.7.0 refuses bf16 for all four Snapdragons: `Failed to map Onnx data type to
    Qnn data type!`. Chips without fp16: "The SocModel doesn't support FP16", pytorch/executorch PR
    22542.
    """

    code = "L113"
    name = "float-type"
    evidence = "doc"
    known_by = "pytorch/executorch PR 22542, read 2026-11-22"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        if subject.scheme != "fp16":
            return
        half, brain = target.types.get("fp16"), target.types.get("bf16")
        if half and not half.value:
            yield self.finding(
                target,
                f"{target.device} doesn't compute in fp16",
                fix="use `--scheme w8a16` or `--scheme w4a16`",
                fact=half,
            )
        kinds = subject.plan.anatomy.kinds
        if brain and not brain.value and any(t.dtype == "BF16" for k in kinds for t in k.tensors):
            yield self.finding(
                target,
                f"{subject.plan.anatomy.source} is stored in bf16, and becomes fp16 here",
                why="what exceeds 65,504 becomes infinite",
                fix="compare the two first, or use `--scheme w8a16`",
                key="model",
                severity="note",
                fact=brain,
            )
