"""Two blocks of Qwen2.5-3B's real width, as graphs and as binaries: three minutes, 4 GB."""

from pathlib import Path

import pytest
import torch
from tiny import moved
from transformers import AutoConfig, AutoModelForCausalLM

from surgery.adapter import load_base, save_adapter
from surgery.apply import apply_plan
from surgery.compose import load_recipe
from surgery.export import export_adapter
from surgery.manifest import read_manifest
from surgery.model import find_model
from surgery.plan import plan_recipe
from surgery.runners.onnx import open_loop
from surgery.runners.qnn import OnEmulator, OnReference, open_emulator
from surgery.snapdragon.compiler import compile_graph
from surgery.snapdragon.toolchain import why_not
from surgery.target import load_target

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
IDS = [5, 9, 33, 70, 100, 101, 20, 3, 77, 61, 8]
STEPS = 32


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(find_model("builtin/qwen2.5-3b").folder)
    config.update({"num_hidden_layers": 2, "vocab_size": 2048})
    config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "base")
    for file in find_model("builtin/tiny-qwen2").folder.glob("token*"):
        (folder / "base" / file.name).write_bytes(file.read_bytes())
    recipe = load_recipe(
        "genieblue_skip", [f"model={folder / 'base'}", "operations.copies.blocks=[1]"]
    )
    plan = plan_recipe(recipe, weights=True)
    save_adapter(plan, moved(apply_plan(plan, load_base(str(folder / "base")))), folder / "a")
    return folder / "a"


def test_graphs_in_float_compile(adapter: Path) -> None:
    out = adapter.with_name("onnx")
    manifest = export_adapter(adapter, out, to="onnx", prefill=16, context=64)
    chip = load_target("snapdragon").chip
    assert chip
    for name in ("block.0", "copy.1", "head"):
        for file in manifest.parts[name].files:
            if file.graph:
                made = adapter.with_name(f"{name}.{file.name}")
                answer = compile_graph(out / name / file.name, *chip, made, fp16=True)
                assert answer.accepted, (name, file.name, answer.error)


def test_the_emulator_says_what_the_quantised_reference_says(adapter: Path) -> None:
    out = adapter.with_name("qnn")
    export_adapter(adapter, out, to="qnn", target="snapdragon", prefill=16, context=64)
    manifest = read_manifest(out)
    with open_emulator(manifest) as emulator:
        for path in ("text", "multimodal"):
            loops = (
                open_loop(out, manifest, path, engine)
                for engine in (OnReference(out), OnEmulator(out, emulator))
            )
            reference, found = (loop.generate(IDS, STEPS, ()) for loop in loops)
            assert found == reference
            assert len({*reference}) > 8
