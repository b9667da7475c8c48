"""An adapter of a GGUF base: LoRA as it is, and copies as exact differences of full rank.

llama.cpp adds B @ A to a matrix. A copy is thus its difference from the original times an identity,
on whichever side is narrower. Norms and biases can't be adapted so: llama.cpp leaves them out of an
adapter without a word (`src/llama-adapter.cpp`), and a copy that trains them is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from surgery.adapter.side_files import adapter_name
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.gguf.architecture import Decoder, Values
from surgery.export.gguf.file import GgufTensor
from surgery.operations.edits import AddLora, SwapBlock
from surgery.plan.planner import Plan
from surgery.storage.file_names import ADAPTER_WEIGHTS
from surgery.storage.safetensors.header import StoredTensor, read_header
from surgery.storage.safetensors.lora_merge import fp32_values

if TYPE_CHECKING:
    from gguf import GGUFWriter

Read = Callable[[str], Values]
"""From the name in memory of a tensor of the base to its values."""


def describe_adapter(writer: "GGUFWriter") -> None:
    """Add an adapter's metadata; an alpha of 0 is llama.cpp's for a scale of 1, B has its own."""
    from gguf import GGUFType, Keys

    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)


def adapter_tensors(
    plan: Plan, folder: Path, decoder: Decoder, base: Read, *, copies: bool
) -> list[GgufTensor]:
    """Return the tensors of an adapter; copies' norms and biases are compared, no more is read.

    Args:
        plan: Plan of the adapter.
        folder: Path of the adapter folder.
        decoder: The base as llama.cpp stores it.
        base: Reads the base's tensors.
        copies: Whether copies are in it, too.

    Raises:
        SurgeryError: A632 for a copy whose norms or biases differ from the base's.
    """
    stored = read_header(folder / ADAPTER_WEIGHTS)
    found = [tensor for lora in plan.loras() for tensor in _pair(lora, stored, decoder)]
    return [*found, *(_differences(plan, stored, decoder, base) if copies else ())]


def _pair(
    lora: AddLora, stored: Mapping[str, StoredTensor], decoder: Decoder
) -> Iterator[GgufTensor]:
    a, b = (stored[adapter_name(tensor)] for tensor in lora.tensors[:2])
    name = f"{lora.path}.weight"
    yield _named(name, decoder, "a", a.shape, partial(fp32_values, a))

    def scaled() -> Values:
        return decoder.output_rows(name, fp32_values(b) * np.float32(lora.scale))

    yield _named(name, decoder, "b", b.shape, scaled)


def _differences(
    plan: Plan, stored: Mapping[str, StoredTensor], decoder: Decoder, base: Read
) -> Iterator[GgufTensor]:
    copies = ((swap, tensor) for swap in plan.swaps() for tensor in swap.tensors)
    for edit, tensor in copies:
        own, name = stored[adapter_name(tensor)], tensor.name
        if len(own.shape) == 2:
            yield from _full_rank(name, own, decoder, base)
        elif not np.array_equal(fp32_values(own), base(name)):
            raise SurgeryError(diagnostic("A632.vectors", name=name, freeze=_vectors(edit)))


def _vectors(swap: SwapBlock) -> list[str]:
    """Patterns of a recipe's `freeze` for the norms and biases of copies."""
    names = [tensor.name for tensor in swap.tensors if len(tensor.shape) < 2]
    globs = {"*.bias" if name.endswith(".bias") else "*norm*" for name in names}
    return [f"{swap.operation}:{glob}" for glob in sorted(globs, reverse=True)]


def _full_rank(name: str, own: StoredTensor, decoder: Decoder, base: Read) -> Iterator[GgufTensor]:
    outputs, inputs = own.shape

    def difference() -> Values:
        return decoder.transformed(name, fp32_values(own) - base(name))

    def identity() -> Values:
        return np.eye(min(own.shape), dtype=np.float32)

    rank = min(own.shape)
    read_a, read_b = (difference, identity) if outputs < inputs else (identity, difference)
    yield _named(name, decoder, "a", (rank, inputs), read_a)
    yield _named(name, decoder, "b", (outputs, rank), read_b)


def _named(
    name: str,
    decoder: Decoder,
    side: str,
    shape: tuple[int, ...],
    read: Callable[[], NDArray[np.float32]],
) -> GgufTensor:
    return GgufTensor(f"{decoder.name(name)}.lora_{side}", shape, read)
