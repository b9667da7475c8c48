"""Two blocks of Qwen2.5-3B's real width, as graphs and as binaries: ten minutes, 6 GB."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_base, save_adapter
from surgery.data.samples.texts import CALIBRATION
from surgery.export.export import export_adapter
from surgery.model.source import find_model
from surgery.npu.qualcomm.compiler import compile_graph
from surgery.npu.qualcomm.toolchain import why_not
from surgery.npu.target import load_target
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.runtime.formats.qnn import OnEmulator, OnReference, open_emulator
from surgery.runtime.graph_loop import open_loop
from surgery.runtime.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
BUILT_IN = find_model("builtin/tiny-qwen2").folder
STEPS = 32
LEARNED = STEPS + 4


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(find_model("builtin/qwen2.5-3b").folder)
    config.update({"num_hidden_layers": 2, "vocab_size": 2048})
    config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    learn(model)
    model.to(torch.bfloat16).save_pretrained(folder / "base")
    for file in BUILT_IN.glob("token*"):
        (folder / "base" / file.name).write_bytes(file.read_bytes())
    words = [f"model={folder / 'base'}", "operations.copies.blocks=[1]"]
    plan = plan_recipe(load_recipe("genieblue_skip", words), weights=True)
    save_adapter(plan, nudged(apply_plan(plan, load_base(str(folder / "base")))), folder / "a")
    return folder / "a"


@torch.no_grad()
def nudged(model: Any) -> Any:
    """The model itself, with little noise added to all that it trains."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.002 * torch.randn_like(parameter))
    return model


def learn(model: Any) -> None:
    """A few sentences by heart: a random model is so undecided that rounding turns its words."""
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN)
    rows = [tokenizer(text)["input_ids"][:LEARNED] for text in CALIBRATION]
    ids = torch.tensor([row for row in rows if len(row) == LEARNED])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.5


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


def test_the_emulator_says_what_the_quantized_reference_says(adapter: Path) -> None:
    out = adapter.with_name("qnn")
    export_adapter(adapter, out, to="qnn", target="snapdragon", prefill=16, context=64)
    manifest = read_manifest(out)
    ids = AutoTokenizer.from_pretrained(BUILT_IN)(CALIBRATION[0])["input_ids"][:3]
    with open_emulator(manifest) as emulator:
        for path in ("text", "multimodal"):
            loops = (
                open_loop(out, manifest, path, engine)
                for engine in (OnReference(out), OnEmulator(out, emulator))
            )
            reference, found = (loop.generate(ids, STEPS, ()) for loop in loops)
            assert found == reference
            assert len({*reference}) > 8
