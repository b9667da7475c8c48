"""Inputs for an ONNX file that somebody else made, on which its outputs mean something.

A detector that sees noise finds nothing: all that it gives is rounded to zero, and comparing that
shows nothing. So it is shown a picture with words, where noise doesn't do.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.cpu_reference import reference

if TYPE_CHECKING:
    from onnx_ir import Value

    Arrays = dict[str, np.ndarray[Any, Any]]

Kind = Literal["noise", "picture", "bits"]
"""bits: noise, and nothing but 0 and 1 as integers."""

_ENOUGH: Final = 0.05
"""Greatest number of an output from which on it says something; a probability of one in twenty."""
_BITS: Final = ("mask", "type")
"""In the names of integer inputs that are 0 or 1."""
_IDS: Final = 256
"""Whole inputs are below it, unless the graph can't take that."""
_MIN_SIDE: Final = 16
_CHANNELS: Final = (1, 3)
_TEXT: Final = "model 2026 text 381 head 54 block 7 word"


def meaningful_inputs(file: Path, inputs: Sequence["Value"], count: int) -> "list[Arrays]":
    """Draw inputs on which each output says something; where none is found, what says most.

    Args:
        file: of the graph, which is run on the CPU.
        inputs: of the graph, with static shapes.
        count: how many.

    Returns:
        As many; the same ones for the same graph.
    """
    scores = {kind: _smallest_peak(file, _random_feeds(inputs, kind, 0)) for kind in _kinds(inputs)}
    enough = (kind for kind, least in scores.items() if least >= _ENOUGH)
    kind = next(enough, max(scores, key=lambda kind: scores[kind]))
    return [_random_feeds(inputs, kind, seed) for seed in range(count)]


def _kinds(inputs: Sequence["Value"]) -> Iterator[Kind]:
    yield "noise"
    if any(_is_image(_shape(value)) for value in inputs):
        yield "picture"
    if any(not value.dtype.is_floating_point() for value in inputs if value.dtype):
        yield "bits"


def _smallest_peak(file: Path, feeds: "Arrays") -> float:
    """The greatest number of the output that has the least; below 0 where the graph fails."""
    try:
        found = reference(file, feeds)
    except SurgeryError:
        return -1.0
    outputs = [array for array in found.values() if array.dtype.kind == "f" and array.size]
    return min((float(np.nan_to_num(np.abs(array)).max()) for array in outputs), default=1.0)


def _random_feeds(inputs: Sequence["Value"], kind: Kind, seed: int) -> "Arrays":
    generator = np.random.default_rng(seed)
    return {str(value.name): _array(value, kind, generator) for value in inputs}


def _array(value: "Value", kind: Kind, generator: np.random.Generator) -> "np.ndarray[Any, Any]":
    assert value.dtype is not None
    shape, dtype = _shape(value), value.dtype.numpy()
    if not value.dtype.is_floating_point():
        bits = kind == "bits" or any(word in str(value.name) for word in _BITS)
        most = 2 if bits or value.dtype.bitwidth < 8 else min(_IDS, 2 ** (value.dtype.bitwidth - 1))
        return generator.integers(0, most, shape).astype(dtype)
    if kind == "picture" and _is_image(shape):
        return _image(shape, generator).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)


def _shape(value: "Value") -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(str(size)) for size in value.shape)


def _is_image(shape: tuple[int, ...]) -> bool:
    """Whether it is a batch of pictures, channels first or last."""
    if len(shape) != 4 or not {shape[1], shape[3]} & {*_CHANNELS}:
        return False
    return min(_height_width(shape)) >= _MIN_SIDE


def _height_width(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[2:4] if shape[1] in _CHANNELS else shape[1:3]  # type: ignore[return-value]


def _image(shape: tuple[int, ...], generator: np.random.Generator) -> "np.ndarray[Any, Any]":
    """Dark words in lines on a light ground, a disc and a box, as values from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = _height_width(shape)
    image = Image.new("L", (width, height), 220)
    draw = ImageDraw.Draw(image)
    size = max(12, min(height // 2, 28))
    if height > 3 * size:
        draw.ellipse((width * 0.55, height * 0.5, width * 0.95, height * 0.9), fill=120)
        draw.rectangle((width * 0.05, height * 0.6, width * 0.4, height * 0.9), fill=170)
    words = generator.permutation(_TEXT.split())
    for line in range(max(1, height // (2 * size))):
        text = " ".join(np.roll(words, line))
        draw.text((4, 2 + 2 * size * line), text, fill=20, font=ImageFont.load_default(size))
    plane = np.asarray(image) / 127.5 - 1
    first = shape[1] in _CHANNELS
    return np.array(np.broadcast_to(plane if first else plane[:, :, None], shape))
