"""A deeper model's logits, computed by the base itself: blocks run again on what they gave.

Independent of configs, files and names: each block that has a copy right behind it is called once
more in its own place, without a cache.
"""

from typing import Any

import torch

from surgery.adapter.folder import load_base
from surgery.model.numerics import Difference
from surgery.operations.edits import InsertBlock
from surgery.plan.planner import Plan
from surgery.verification.context import forward_logits, sums_of
from surgery.verification.prompts import make_prompts


def difference_from_repeated(plan: Plan, folder: str) -> Difference | None:
    """How far logits lie apart; None where copies stand elsewhere.

    Args:
        plan: whose inserted blocks start as copies.
        folder: the deeper checkpoint.
    """
    added = [edit for edit in plan.edits if isinstance(edit, InsertBlock)]
    if not added or any(edit.after != edit.block for edit in added):
        return None
    assert plan.files is not None
    base: Any = load_base(str(plan.files.folder)).eval()
    prompts = make_prompts(plan.files.folder, base)
    blocks = base.get_submodule(plan.anatomy.blocks_path)
    for edit in added:
        _run_again(blocks[edit.block])
    wanted, found = forward_logits(base, prompts), forward_logits(load_base(folder).eval(), prompts)
    return sums_of(plan, base).compare(found, wanted)


def _run_again(block: Any) -> None:
    once = block.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        hidden = _hidden(once(*args, **kwargs))
        if args:
            return once(hidden, *args[1:], **kwargs)
        return once(**{**kwargs, "hidden_states": hidden})

    block.forward = twice


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
