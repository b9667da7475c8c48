"""An adapter of a GGUF base: LoRA as it is, and copies as their differences.

llama.cpp adds B @ A to a matrix. Norms and biases can't be adapted so: llama.cpp leaves them out of
an adapter without a word (`src/llama-adapter.cpp`), and a copy that trains them is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from surgery.export.gguf.architecture import Decoder, Values
from surgery.export.gguf.file import GgufTensor
from surgery.export.matrix_changes import Change, Factors, latest_factors

if TYPE_CHECKING:
    from gguf import GGUFWriter


def describe_adapter(writer: "GGUFWriter") -> None:
    """Add an adapter's metadata; an alpha of 0 is llama.cpp's for a scale of 1, B has its own."""
    from gguf import GGUFType, Keys

    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)


def adapter_tensors(
    changes: Sequence[Change], decoder: Decoder, lost: dict[str, float]
) -> Iterator[GgufTensor]:
    """A and B of each changed matrix.

    Args:
        changes: As `matrix_changes`.
        decoder: The base as llama.cpp stores it.
        lost: Filled with what each product loses, as it is written.
    """
    factors = latest_factors(changes, lost)
    for index, change in enumerate(changes):
        name = f"{change.path}.weight"
        stored_as = decoder.name(name)
        read_a, read_b = partial(_a, factors, index), partial(_b, factors, index, decoder, name)
        yield GgufTensor(f"{stored_as}.lora_a", (change.rank, change.inputs), read_a)
        yield GgufTensor(f"{stored_as}.lora_b", (change.outputs, change.rank), read_b)


def _a(factors: Callable[[int], Factors], index: int) -> Values:
    return factors(index).a


def _b(factors: Callable[[int], Factors], index: int, decoder: Decoder, name: str) -> Values:
    return decoder.output_rows(name, factors(index).b)
