"""Is a deepened model right? Judged against the base, whose own blocks run more than once.

Nothing of `surgery` is used here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW = 12, 8
"""Tokens of the prompt, longer than any window here, and tokens generated."""
TOLERANCE = 1e-4
"""Of the largest logit, in fp32."""


def load(folder: Path) -> tuple[Any, list[str]]:
    """Open a folder with plain transformers; return the model and what did not fit."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    faults = {
        "tensors drawn at random on reload": found["missing_keys"],
        "tensors of another shape": found["mismatched_keys"],
        "tensors ignored on reload": found["unexpected_keys"],
    }
    return model.eval(), [f"{len(keys)} {what}" for what, keys in faults.items() if keys]


def logits(model: Any) -> torch.Tensor:
    """Return the logits of the prompt (1, tokens, vocabulary), made without a cache."""
    with torch.no_grad():
        return model(_prompt(), use_cache=False).logits


def logits_of_repeated(model: Any, blocks: str, times: Sequence[int]) -> torch.Tensor:
    """Return what the base gives when each of its blocks runs so many times in a row.

    Without a cache a block that runs twice is a copy behind it, with the same mask and the same
    positions; no config and no index is involved.
    """
    for block, count in zip(model.get_submodule(blocks), times, strict=True):
        block.forward = _repeated(block.forward, count)
    return logits(model)


def judge(model: Any, blocks: str, wanted: torch.Tensor, depth: int) -> list[str]:
    """Return what is wrong with a deepened model; nothing if it is right.

    Args:
        model: in evaluation mode.
        blocks: the path of its block list.
        wanted: the logits that it must give.
        depth: how many blocks must run.
    """
    faults = []
    ran, found = _watched(model, blocks)
    if ran != depth:
        faults.append(f"{ran} blocks run instead of {depth}")
    if (off := difference(found, wanted)) > TOLERANCE:
        faults.append(f"logits off by {off:.2g} of the largest")
    cached, with_cache = _generate(model, use_cache=True)
    plain, without = _generate(model, use_cache=False)
    if not torch.equal(cached, plain) or difference(with_cache, without) > TOLERANCE:
        faults.append("generation with a cache is not generation without")
    return faults


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the greatest difference, relative to the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def _prompt() -> torch.Tensor:
    return torch.randint(3, 128, (1, PROMPT), generator=torch.Generator().manual_seed(0))


def _repeated(forward: Callable, count: int) -> Callable:
    def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for _ in range(count):
            output = forward(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return output

    return run


def _watched(model: Any, blocks: str) -> tuple[int, torch.Tensor]:
    """Return how often a block ran in one pass, and its logits."""
    ran: list[Any] = []
    handles = [
        block.register_forward_hook(lambda *_: ran.append(None))
        for block in model.get_submodule(blocks)
    ]
    found = logits(model)
    for handle in handles:
        handle.remove()
    return len(ran), found


def _generate(model: Any, *, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of a greedy continuation, and the logits that chose them."""
    done = model.generate(
        _prompt(),
        attention_mask=torch.ones_like(_prompt()),
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return done.sequences, torch.stack(done.logits)
