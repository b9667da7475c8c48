"""`--to qnn`: what was compiled says in the emulator what the quantised graphs say on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import moved

from surgery.adapter import load_base, save_adapter
from surgery.apply import apply_plan
from surgery.compose import load_recipe
from surgery.diagnostic import SurgeryError
from surgery.export import prepare_export
from surgery.manifest import read_manifest
from surgery.model import find_model
from surgery.plan import plan_recipe
from surgery.runners.onnx import open_loop
from surgery.runners.qnn import OnEmulator, OnReference, open_emulator
from surgery.snapdragon.toolchain import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
STEPS = 32
IDS = [5, 9, 33, 70, 100, 101, 20, 3, 77, 61, 8]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first four blocks of the built-in model, one of which is copied.

    A random model has no likeliest word to speak of: rounding alone would change it.
    """
    folder = tmp_path_factory.mktemp("qnn")
    source = find_model("builtin/tiny-qwen2").folder
    model = load_base(str(source)).float()
    model.model.layers = model.model.layers[:4]
    model.config.num_hidden_layers = 4
    model.config.layer_types = model.config.layer_types[:4]
    model.save_pretrained(folder / "base")
    for file in source.glob("token*"):
        (folder / "base" / file.name).write_bytes(file.read_bytes())
    recipe = load_recipe("genieblue_skip", [f"model={folder / 'base'}", "rank=4"])
    plan = plan_recipe(recipe, weights=True)
    save_adapter(plan, moved(apply_plan(plan, load_base(str(folder / "base")))), folder / "adapter")
    return folder / "adapter"


class _Stopped(BaseException):
    """As by Ctrl-C."""


@pytest.fixture(scope="module")
def out(adapter: Path) -> Path:
    """An export that was stopped behind its first block, and went on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only wait for each other's threads
    options = {"to": "qnn", "target": "snapdragon", "prefill": 8, "context": 64}
    prepared = prepare_export(adapter, **options)
    out: Path = adapter.parent / "out"
    made = out.with_name(".out.work") / "made" / "block.0" / "prefill_qnn.bin"

    def stop(_: int) -> None:
        if made.is_file():
            raise _Stopped

    with pytest.raises(_Stopped):
        prepared.write(out, progress=stop)
    assert not out.exists()
    first = made.stat().st_mtime_ns
    prepared.write(out)
    assert (out / "block.0" / made.name).stat().st_mtime_ns == first, "it was made anew"
    torch.set_num_threads(threads)
    return out


def answers(engine: Any, out: Path, path: Any, words: list[int]) -> list[np.ndarray]:
    """Logits behind the prompt, and behind each of these words after it."""
    loop = open_loop(out, read_manifest(out), path, engine)
    return [loop.read(IDS), *(loop.step("decode", [word]) for word in words)]


def test_the_emulator_says_what_the_quantised_reference_says(out: Path) -> None:
    """Step by step on the same words: a tie of two would part them for good."""
    manifest = read_manifest(out)
    said = {}
    with open_emulator(manifest) as emulator:
        for path in ("text", "multimodal"):
            loop = open_loop(out, manifest, path, OnReference(out))
            said[path] = loop.generate(IDS, STEPS, ())
            found = answers(OnEmulator(out, emulator), out, path, said[path][:-1])
            wanted = answers(OnReference(out), out, path, said[path][:-1])
            for one, other, word in zip(found, wanted, said[path], strict=True):
                assert np.corrcoef(one, other)[0, 1] > 0.999
                assert other[word] - other[one.argmax()] < 0.05 * other.std(), "no tie"
            same = sum(
                int(one.argmax()) == word for one, word in zip(found, said[path], strict=True)
            )
            assert same >= STEPS - 2
    assert said["text"] != said["multimodal"]
    assert len({*said["text"]}) > 2, "a model that says one word alone proves nothing"


def test_every_block_is_compiled_and_its_loss_is_told(out: Path) -> None:
    manifest = read_manifest(out)
    compiled = {name for name, part in manifest.parts.items() if part.quantisation == "w4a16"}
    assert compiled == {"block.0", "block.1", "block.2", "block.3", "copy.3", "head"}
    for name in compiled:
        files = {file.name: file for file in manifest.parts[name].files}
        graphs = [file.graph for file in files.values() if file.graph]
        assert {graph.phase for graph in graphs} == (
            {"both"} if name == "head" else {"prefill", "decode"}
        )
        for graph in graphs:
            assert files[graph.weights].bytes > 0
            for cosines in graph.cosine.values():
                assert cosines.keys() == {value.name for value in graph.outputs}
                assert min(cosines.values()) > 0.8
    assert [file.name for file in out.parent.iterdir() if file.name.startswith(".")] == []


def test_a_device_must_be_named(adapter: Path) -> None:
    for target in (None, "dimensity"):
        with pytest.raises(SurgeryError, match="A617"):
            prepare_export(adapter, to="qnn", target=target)
