"""Each block runs once, in order, and copies run where the plan has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.storage.file_names import ADAPTER
from surgery.verification.context import VerificationContext
from surgery.verification.runner import Check, Outcome

_Run = tuple[int, str]


class BlocksExecuted(Check):
    """One forward pass runs every block of the plan once and in order.

    A depth that the config doesn't state is silent: most decoders run only the first
    `num_hidden_layers` blocks of their list. On the text path only originals run; on the
    multimodal path the copies run instead of them, exactly where the plan says, and so do LoRA and
    experts. Cross-attention blocks, which the config lists, run only with an image, and the prompts
    have none.
    """

    def run(self, context: VerificationContext) -> Outcome:
        """Count with forward hooks; see `Check.run`."""
        failures, measured = [], {}
        copied = {edit.block for edit in context.plan.swaps()}
        running = _without_image(context)
        for path in context.paths:
            swapped = copied if path == MULTIMODAL else set()
            wanted = [(i, "copy" if i in swapped else "original") for i in running]
            ran: list[_Run] = []
            pairs: list[int] = []
            experts: list[int] = []
            with _watched(context, ran, pairs, experts):
                context.logits(path)
            failures += _failures(path, ran, wanted)
            if path == TEXT and pairs:
                failures.append(f"LoRA ran on {len(pairs)} matrices on the text path")
            if path == MULTIMODAL and context.plan.loras() and not pairs:
                failures.append("no LoRA ran on the multimodal path")
            failures += _expert_failures(context, path, experts)
            measured[f"{path}_blocks"] = len(ran)
            measured[f"{path}_lora"] = len(pairs)
        success = f"all {len(running)} blocks run once and in order"
        if len(running) < len(context.plan.depth):
            success += f", {len(context.plan.depth) - len(running)} run only with images"
        if copied:
            success += f", copies instead of {len(copied)} of them on the multimodal path alone"
        if context.plan.experts():
            success += f", experts in {len(context.plan.experts())} of them there alone"
        return self.judge(failures, success, copies=len(copied), **measured)


def _without_image(context: VerificationContext) -> list[int]:
    """The blocks that run on text, by the list of cross-attention blocks in Mllama's config."""
    config: Any = context.decoder.config
    cross = getattr(config.get_text_config(decoder=True), "cross_attention_layers", None) or ()
    return [block for block in range(len(context.plan.depth)) if block not in cross]


def _failures(path: str, ran: list[_Run], wanted: list[_Run]) -> list[str]:
    if ran == wanted:
        return []
    if len(ran) != len(wanted):
        return [f"on the {path} path {len(ran)} blocks ran, and the plan has {len(wanted)}"]
    (i, found), (j, kind) = next(p for p in zip(ran, wanted, strict=True) if p[0] != p[1])
    return [f"on the {path} path the {found} of block {i} ran instead of the {kind} of block {j}"]


def _expert_failures(context: VerificationContext, path: str, ran: list[int]) -> list[str]:
    """The prompts have image tokens, so that every expert has to run, on one path alone."""
    added = context.plan.experts() if path == MULTIMODAL else []
    wanted = [edit.block for edit in added for _ in edit.matrices]
    if sorted(ran) == wanted:
        return []
    return [f"on the {path} path {len(ran)} experts ran, and the plan has {len(wanted)}"]


@contextmanager
def _watched(
    context: VerificationContext, ran: list[_Run], pairs: list[int], experts: list[int]
) -> Iterator[None]:
    """Record each block, LoRA pair and expert that runs; the hooks are removed afterwards."""
    decoder: Any = context.decoder
    blocks = decoder.get_submodule(context.plan.anatomy.blocks_path)
    watched: list[tuple[nn.Module, list[Any], Any]] = []
    for index, block in enumerate(blocks.children()):
        wrapped = hasattr(block, "original_module")
        original = block.original_module if wrapped else block
        watched.append((original, ran, (index, "original")))
        if wrapped:
            watched.append((block.modules_to_save[ADAPTER], ran, (index, "copy")))
    for edit in context.plan.loras():
        pair = decoder.get_submodule(edit.path).lora_A[ADAPTER]
        watched.append((pair, pairs, edit.block))
    for added in context.plan.experts():
        matrices = (decoder.get_submodule(path).expert[ADAPTER] for path in added.matrices)
        watched += [(matrix, experts, added.block) for matrix in matrices]
    handles = [
        module.register_forward_hook(partial(_note, into, what)) for module, into, what in watched
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(into: list[Any], what: Any, module: nn.Module, args: Any, output: Any) -> None:
    into.append(what)
