"""Rule L108: a quantization that the target hasn't."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.npu.target import Target


class SchemeRule(PlanRule):
    """A scheme that the target refuses or is not known to take, or a base that is packed already.

    ## Why is it bad?

    What the NPU has no arithmetic for is computed on the CPU or not at all. A base that GPTQ, AWQ
    or bitsandbytes packed has lost the float weights from which the vendor's tools quantize in
    their own way, and fp8 and 4-bit floats are none of the schemes that they take.

    ## Example

    `surgery lint lora model=./qwen2.5-3b-gptq --target snapdragon`; block-wise int4 weights with
    8-bit activations.

    ## Use instead

    `w4a16` with symmetric int4, as the paper does, or `w8a16`; the unquantized checkpoint as base.

    ## Evidence

    For a scheme, the target's fact, with its source. For packed bases the documentation of
    onnxruntime's QNN execution provider, which takes QDQ models of 4, 8 and 16 bit integers.
    """

    code = "L108"
    name = "scheme"
    evidence = "doc"
    known_by = "onnxruntime-qnn docs/execution_providers/QNN-ExecutionProvider.md, read 2026-11-22"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        asked = target.schemes.get(subject.scheme)
        taken = ", ".join(name for name, fact in target.schemes.items() if fact.value)
        if asked is None or not asked.value:
            yield self.finding(
                target,
                f"{target.device} {'is not known to take' if asked is None else 'refuses'} "
                f"{subject.scheme}",
                fix=f"use one of {taken}" if taken else "quantize with the vendor's own tools",
                severity="warning" if asked is None else None,
                fact=asked,
            )
        method = subject.plan.anatomy.quantization
        if method:
            yield self.finding(
                target,
                f"the weights of {subject.plan.anatomy.source} are packed already ({method})",
                why=f"the device's tools quantize float weights themselves, to {taken}",
                fix="name the unquantized checkpoint in `model=`",
                key="model",
            )
