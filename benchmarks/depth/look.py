"""Is a deeper checkpoint what it should be? Prints what it finds as JSON.

Usage: python benchmarks/depth/look.py SOURCE OUT ORDER

ORDER is a JSON list: the source's block that each block of OUT repeats.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM

BLOCKS = "model.layers."


def origins(names: list[str], order: list[int]) -> dict[str, str]:
    """Return the source's name of each name that the deeper checkpoint has to hold."""
    found = {name: name for name in names if BLOCKS not in name}
    for place, block in enumerate(order):
        head = f"{BLOCKS}{block}."
        inside = (name for name in names if name.startswith(head))
        found |= {f"{BLOCKS}{place}.{name.removeprefix(head)}": name for name in inside}
    return found


def compare(source: Path, out: Path, order: list[int]) -> int:
    """Return how many tensors are the source's bit for bit; stop at one that isn't, or is amiss."""
    with ExitStack() as stack:
        old, new = ({}, {})
        for folder, held in ((source, old), (out, new)):
            for file in folder.glob("*.safetensors"):
                opened = stack.enter_context(safe_open(file, "pt"))
                held.update(dict.fromkeys(opened.keys(), opened))
        wanted = origins(list(old), order)
        assert sorted(wanted) == sorted(new), set(wanted) ^ set(new)
        for name, origin in wanted.items():
            a, b = new[name].get_tensor(name), old[origin].get_tensor(origin)
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name
        return len(wanted)


def blocks_run(out: Path) -> int | str:
    """Return how many blocks run after a reload with plain transformers, or why it fails."""
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    except Exception as error:  # whatever it is, it is what a user of the folder sees
        return f"{type(error).__name__}: {str(error).splitlines()[0]}".replace(str(out), "OUT")
    ran: list[None] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda *_: ran.append(None))
    with torch.no_grad():
        model(torch.arange(4)[None])
    return len(ran)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    source, out, order = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    equal = compare(source, out, order)
    print(json.dumps({"bit_equal": equal, "blocks_run": blocks_run(out)}))
