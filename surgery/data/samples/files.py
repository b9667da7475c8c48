"""Small files to try the commands on, generated here, so that they are free of licenses.

Flat shapes in four colors, questions about them as LLaVA writes them, sentences to measure text on,
and the graph of one attention head.
"""

import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.disk_errors import io_errors

_SIDE: Final = 64  # pixels
_COLORS: Final = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (33, 96, 196),
    "yellow": (241, 196, 15),
}
_SHAPES: Final = ("circle", "square", "triangle")
_HELD_OUT: Final = ("red triangle", "blue circle", "yellow square")
_WIDTH, _TOKENS = 64, 16


def write_samples(folder: Path) -> list[str]:
    """Write the samples to a folder; return a description of each, one line a file.

    Args:
        folder: Path of a folder, which may have other files, and samples of an earlier call.

    Raises:
        SurgeryError: A301, if one of them exists with other content; A302 to A304 for the disk.
    """
    with tempfile.TemporaryDirectory() as made, io_errors(folder):
        for name, (_, write) in _FILES.items():
            write(Path(made, name))
        files = [path.relative_to(made) for path in Path(made).rglob("*") if path.is_file()]
        absent = [file for file in files if not os.path.lexists(folder / file)]
        for file in set(files).difference(absent):
            if not filecmp.cmp(Path(made, file), folder / file, shallow=False):
                raise SurgeryError(diagnostic("A301.no_sample", path=folder / file))
        for file in absent:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(made, file), folder / file)
    return [f"{name}: {what}" for name, (what, _) in _FILES.items()]


def _pictures(folder: Path) -> None:
    folder.mkdir()
    for color, shape in product(_COLORS, _SHAPES):
        _drawn(color, shape).save(folder / f"{color}-{shape}.png")


def _drawn(color: str, shape: str) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    pen, box = ImageDraw.Draw(image), (12, 12, 52, 52)
    if shape == "circle":
        pen.ellipse(box, _COLORS[color])
    elif shape == "square":
        pen.rectangle(box, _COLORS[color])
    else:
        pen.polygon([(32, 10), (54, 52), (10, 52)], _COLORS[color])
    return image


def _cat(file: Path) -> None:
    """A face with two ears, eyes and a nose."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_SIDE, _SIDE), (238, 233, 222))
    pen = ImageDraw.Draw(image)
    for ear in ([(14, 30), (16, 6), (32, 18)], [(50, 30), (48, 6), (32, 18)]):
        pen.polygon(ear, (90, 90, 96))
    pen.ellipse((12, 14, 52, 56), (110, 110, 118))
    for left in (20, 36):
        pen.ellipse((left, 26, left + 8, 36), (120, 200, 80))
        pen.ellipse((left + 3, 28, left + 5, 35), "black")
    pen.polygon([(29, 40), (35, 40), (32, 44)], (230, 140, 150))
    image.save(file)


def _talk(file: Path) -> None:
    _write_lines(file, (row for name, row in _questions() if name not in _HELD_OUT))


def _test(file: Path) -> None:
    _write_lines(file, (row for name, row in _questions() if name in _HELD_OUT))


def _questions() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each image, with a record about it."""
    for color, shape in product(_COLORS, _SHAPES):
        for asked, answer in (("Which shape is it?", shape), ("Which color is it?", color)):
            turns = [
                {"from": "human", "value": f"<image>\n{asked}"},
                {"from": "gpt", "value": answer},
            ]
            picture = f"photos/{color}-{shape}.png"
            yield f"{color} {shape}", {"image": picture, "conversations": turns}


def _write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _sentences(file: Path) -> None:
    names = [f"{color} {shape}" for color, shape in product(_COLORS, _SHAPES)]
    sentences = (f"The {a} is left of the {b}." for a, b in product(names, names) if a != b)
    file.write_text("\n".join(sentences) + "\n", encoding="utf-8")


def _graph(file: Path) -> None:
    """softmax(x w xᵀ) x over a prompt of sixteen tokens, opset 20."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weight = np.random.default_rng(0).normal(0, 0.1, (_WIDTH, _WIDTH)).astype(np.float32)
    shape = [1, _TOKENS, _WIDTH]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["query"]),
        helper.make_node("Transpose", ["x"], ["key"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["query", "key"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "x"], ["y"]),
    ]
    weights = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "attention", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    save(model, file)


_FILES: Final[dict[str, tuple[str, Callable[[Path], None]]]] = {
    "photos": ("twelve drawn shapes", _pictures),
    "cat.png": ("a drawn cat", _cat),
    "talk.jsonl": ("questions about nine of the shapes, to train on", _talk),
    "test.jsonl": ("questions about the other three, to evaluate with", _test),
    "heldout.txt": ("sentences, to measure text on", _sentences),
    "model.onnx": ("the graph of an attention head, to lint", _graph),
}
