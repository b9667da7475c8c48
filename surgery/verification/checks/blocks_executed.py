"""Each block runs, once, in order, and copies run where the plan puts them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.storage.file_names import ADAPTER
from surgery.verification.runner import Check, Outcome
from surgery.verification.testbed import Bench

_Run = tuple[int, str]


class BlocksExecuted(Check):
    """One forward pass runs every block of the plan once and in order.

    A depth that the config doesn't tell is silent: most decoders run only the first
    `num_hidden_layers` blocks of their list. On the text path only originals run; on the
    multimodal path the copies run instead of them, exactly where the plan says, and so do LoRA and
    experts. The blocks that the config names as looking at images run only beside one, and the
    prompts have none.
    """

    def run(self, bench: Bench) -> Outcome:
        """Count with forward hooks; see `Check.run`."""
        faults, measured = [], {}
        copied = {edit.block for edit in bench.plan.swaps()}
        running = _without_image(bench)
        for path in bench.paths:
            swapped = copied if path == MULTIMODAL else set()
            wanted = [(i, "copy" if i in swapped else "original") for i in running]
            ran: list[_Run] = []
            pairs: list[int] = []
            experts: list[int] = []
            with _watched(bench, ran, pairs, experts):
                bench.logits(path)
            faults += _faults(path, ran, wanted)
            if path == TEXT and pairs:
                faults.append(f"LoRA ran on {len(pairs)} matrices along the text path")
            if path == MULTIMODAL and bench.plan.loras() and not pairs:
                faults.append("no LoRA ran along the multimodal path")
            faults += _expert_faults(bench, path, experts)
            measured[f"{path}_blocks"] = len(ran)
            measured[f"{path}_lora"] = len(pairs)
        good = f"all {len(running)} blocks run once and in order"
        if len(running) < len(bench.plan.depth):
            good += f", {len(bench.plan.depth) - len(running)} run beside images alone"
        if copied:
            good += f", copies in the place of {len(copied)} of them on the multimodal path alone"
        if bench.plan.experts():
            good += f", experts in {len(bench.plan.experts())} of them there alone"
        return self.judge(faults, good, copies=len(copied), **measured)


def _without_image(bench: Bench) -> list[int]:
    """The blocks that run on text, as Mllama's config tells."""
    config: Any = bench.decoder.config
    seeing = getattr(config.get_text_config(decoder=True), "cross_attention_layers", None) or ()
    return [block for block in range(len(bench.plan.depth)) if block not in seeing]


def _faults(path: str, ran: list[_Run], wanted: list[_Run]) -> list[str]:
    if ran == wanted:
        return []
    if len(ran) != len(wanted):
        return [f"on the {path} path {len(ran)} blocks ran, and the plan has {len(wanted)}"]
    (i, found), (j, kind) = next(p for p in zip(ran, wanted, strict=True) if p[0] != p[1])
    return [f"on the {path} path the {found} of block {i} ran instead of the {kind} of block {j}"]


def _expert_faults(bench: Bench, path: str, ran: list[int]) -> list[str]:
    """Image tokens are in the prompts, so that every expert has to run along one path alone."""
    added = bench.plan.experts() if path == MULTIMODAL else []
    wanted = [edit.block for edit in added for _ in edit.matrices]
    if sorted(ran) == wanted:
        return []
    return [f"on the {path} path {len(ran)} experts ran, and the plan has {len(wanted)}"]


@contextmanager
def _watched(bench: Bench, ran: list[_Run], pairs: list[int], experts: list[int]) -> Iterator[None]:
    """Note each block, low-rank pair and expert that runs; the hooks are removed afterwards."""
    decoder: Any = bench.decoder
    blocks = decoder.get_submodule(bench.plan.anatomy.blocks_path)
    watched: list[tuple[nn.Module, list[Any], Any]] = []
    for index, block in enumerate(blocks.children()):
        wrapped = hasattr(block, "original_module")
        original = block.original_module if wrapped else block
        watched.append((original, ran, (index, "original")))
        if wrapped:
            watched.append((block.modules_to_save[ADAPTER], ran, (index, "copy")))
    for edit in bench.plan.loras():
        pair = decoder.get_submodule(edit.path).lora_A[ADAPTER]
        watched.append((pair, pairs, edit.block))
    for added in bench.plan.experts():
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
