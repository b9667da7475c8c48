"""Rule L101: a base whose blocks route tokens to experts."""

from collections.abc import Iterator

from surgery.diagnostics.finding import Finding
from surgery.lint.base import PlanRule, PlanSubject
from surgery.model.anatomy import BlockKind
from surgery.npu.memory_footprint import read_scheme
from surgery.npu.target import Target
from surgery.plan.summary import human_bytes


class MoeRouting(PlanRule):
    """A base whose blocks choose experts for each token: a mixture of experts (MoE).

    It is decided on the model as configured, block by block: gemma-4 text with `enable_moe_block`
    is found, a Qwen2-MoE with every layer in `mlp_only_layers` or without experts is not. AltUp's
    `modality_router` in Gemma 3n is none: it weighs four streams that are all computed, and
    compiles. With `--graph` and `--prove` the block as it traces counts: where its graphs have
    nothing that the compiler refuses, as Llama 4's, which computes all experts, this is a note.

    ## Why is it bad?

    Which tokens an expert gets is known only while the model runs, and the NPU's compiler takes
    static shapes alone. And all experts stay in memory, though each token uses few of them.

    ## Example

    Qwen3-MoE as transformers 5.23 writes it has three forms. `eager` has no graph: torch.export
    stops at `GuardOnDataDependentSymNode`, where experts are looked for with `nonzero()`.
    `grouped_mm` has no ONNX operator. `batched_mm` (TopK, GatherND, MatMul) compiles, and then
    fails on execution: `access data out-of-bound of input!`. The fused operators `MoE` and `QMoE`
    of onnxruntime are refused.

    ## Use instead

    A dense base, such as Qwen2.5, Llama 3.2 or Gemma 3. "NPUs can't run MoE" is not true as such: a
    block that computes all experts and weighs them by the gate compiles and computes right, as does
    one that takes expert weights with `Gather` on axis 0. Both hold every expert in memory, and
    neither is what a checkpoint's own code does. Qualcomm's own tools convert some MoE models
    (QAIRT 2.46 and newer, a preview; for which chips is not said).

    ## Evidence

    onnxruntime-qnn 2.7.0, 2026-11-22: it refuses `MoE` and `QMoE` for four Snapdragons; the other
    forms were exported, compiled for V79 and run in the emulator. For MediaTek the public operator
    table has no TopK, Gather, Scatter or Where. The paper found MoE not to be deployable on
    Dimensity 9400 and Snapdragon 8 Elite (arXiv 2503.06019, section 3.2).
    """

    code = "L101"
    name = "moe-routing"
    evidence = "proved"
    known_by = "onnxruntime-qnn 2.7.0 (QAIRT 2.51.0), soc 43, 57, 69 and 87, 2026-11-22"

    def check(self, subject: PlanSubject, target: Target) -> Iterator[Finding]:
        """See `PlanRule.check`."""
        anatomy = subject.plan.result
        routed = [i for i in range(anatomy.count) if routes(anatomy.block(i))]
        if not routed:
            return
        kind = anatomy.block(routed[0])
        router = next((m.name for m in kind.matrices if m.role == "router"), "")
        size = sum(_expert_parameters(anatomy.block(i)) for i in routed)
        held = human_bytes(round(size * read_scheme(subject.scheme).decoder))
        yield self.finding(
            target,
            f"{len(routed)} of {anatomy.count} blocks of {anatomy.source} route tokens to experts",
            why=f"{_reason(target)}; and all experts, {held} in {subject.scheme}, stay in memory",
            fix="name a dense base in `model=`, such as Qwen/Qwen2.5-3B; some such blocks compile, "
            "and `--prove` decides it for this one",
            key="model",
            module=f"{anatomy.block_path(routed[0])}.{router}".rstrip("."),
            fact=target.fact_on("com.microsoft::MoE"),
        )


def routes(kind: BlockKind) -> bool:
    """Whether a block chooses experts for each token: packed ones, or a router beside some."""
    if not _expert_parameters(kind):
        return False
    if any(matrix.experts for matrix in kind.matrices):
        return True
    return any(matrix.role == "router" and matrix.outputs for matrix in kind.matrices)


def _expert_parameters(kind: BlockKind) -> int:
    return sum(tensor.size for tensor in kind.tensors if "expert" in tensor.name)


def _reason(target: Target) -> str:
    if target.compiler == "none":
        return "TOPK_V2, GATHER, SCATTER_ND and WHERE are not in its public operator table"
    return (
        "which tokens an expert gets is known only at run time: torch.export stops at it, the "
        "compiler refuses the operators MoE and QMoE, and `batched_mm` compiles but fails when run"
    )
