"""`--to onnx`: what the graphs say, step by step, is what torch says, on both paths."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny import greedy, perturbed_adapter, save_tiny, trained_adapter
from transformers import AutoTokenizer

from surgery.adapter.folder import load_adapter, load_base
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter, prepare_export
from surgery.model.source import find_model
from surgery.paths.switching import text_path
from surgery.runtime.causal_mask import LOWEST, causal_mask, sliding_of
from surgery.runtime.cpu_engine import OnCpu
from surgery.runtime.graph_loop import open_loop
from surgery.runtime.manifest import read_manifest
from surgery.runtime.run import run_export

pytest.importorskip("onnxruntime", reason="the graphs are run by onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = find_model("builtin/tiny-qwen2").folder
PROMPT = "A list is a thing that holds many words, and one can read each of them in turn. Then"
STEPS = 36
SMALL = """\
like: snapdragon-8-elite
device: one with room for very little
limits:
  graph_bytes: {value: 1000, evidence: doc, source: made up for a test, date: 2026-11-22}
"""
KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}


@pytest.fixture(scope="module", params=["genieblue_skip", "lora"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A shortly trained adapter of the built-in model, and its export."""
    folder = tmp_path_factory.mktemp(request.param)
    adapter = trained_adapter(request.param, folder)
    export_adapter(adapter, folder / "out", to="onnx", prefill=16, context=128)
    return adapter, folder / "out"


def said(out: Path, path: Any, ids: list[int], steps: int = STEPS) -> list[int]:
    return open_loop(out, read_manifest(out), path, OnCpu(out)).generate(ids, steps, ())


def test_both_paths_say_what_torch_says(trained: tuple[Path, Path]) -> None:
    adapter, out = trained
    ids = AutoTokenizer.from_pretrained(BASE)(PROMPT)["input_ids"]
    assert len(ids) > 16, "there are to be several pieces"
    assert len(ids) % 16, "the last of them is to be filled up"
    model = load_adapter(adapter).float().eval()
    with text_path(model):
        text = greedy(model, ids, STEPS)
    seen = greedy(model, ids, STEPS)
    assert text != seen, "training moved nothing"
    assert text == greedy(load_base(str(BASE)).float().eval(), ids, STEPS)
    assert said(out, "text", ids) == text
    assert said(out, "multimodal", ids) == seen


def test_run_answers_as_transformers_do(trained: tuple[Path, Path]) -> None:
    adapter, out = trained
    inputs = AutoTokenizer.from_pretrained(BASE)([PROMPT], return_tensors="pt")
    model = load_adapter(adapter).float().eval()
    wanted = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS)[0]
    answer = run_export(out, "multimodal", PROMPT, new_tokens=STEPS, chat=False)
    assert [*answer.prompt, *answer.tokens] == wanted.tolist()
    assert answer.text


def test_a_tokenizer_with_other_ids_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = trained
    shutil.copytree(out, tmp_path / "out")
    file = tmp_path / "out" / "tokenizer" / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    last = f": {max(json.loads(text)['model']['vocab'].values())}"
    file.write_text(text.replace(last, last.replace(last[2], "9", 1), 1), encoding="utf-8")
    for path in ("text", "multimodal"):
        with pytest.raises(SurgeryError, match="M112"):
            run_export(tmp_path / "out", path, PROMPT, new_tokens=1)
    file.write_text(text.replace(last, f"{last}9", 1), encoding="utf-8")
    with pytest.raises(SurgeryError, match="A605"):
        run_export(tmp_path / "out", "text", PROMPT, new_tokens=1)


def test_the_manifest_tells_all_that_running_takes(trained: tuple[Path, Path]) -> None:
    _, out = trained
    manifest = read_manifest(out)
    copies = {name for name in manifest.parts if name.startswith("copy.")}
    assert copies == ({"copy.3", "copy.7", "copy.11"} if "skip" in str(out) else set())
    text, seeing = (set(manifest.paths[path]) for path in ("text", "multimodal"))
    assert seeing - text == {"lora", *copies}
    for name, part in manifest.parts.items():
        graphs = [file for file in part.files if file.graph]
        assert all((out / name / file.name).stat().st_size == file.bytes for file in part.files)
        for file in graphs:
            check_graph(out / name / file.name, file.graph)
        if name.startswith(("block.", "copy.")):
            assert [file.graph.phase for file in graphs] == ["prefill", "decode"]
            assert [file.graph.window for file in graphs] == [128, 128]


def check_graph(file: Path, record: Any) -> None:
    """Its inputs are those of the record, and its weights lie in the shared file alone."""
    model = onnx.load(file, load_external_data=False)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [23]
    assert [value.name for value in model.graph.input] == [v.name for v in record.inputs]
    assert [value.name for value in model.graph.output] == [v.name for v in record.outputs]
    outside = [t for t in model.graph.initializer if t.external_data]
    entries = {entry.key: entry.value for tensor in outside for entry in tensor.external_data}
    assert entries.get("location", record.weights) == record.weights
    inside = sum(len(t.raw_data) for t in model.graph.initializer if not t.external_data)
    assert inside < 4096
    operators = {node.op_type for node in model.graph.node}
    if record.window:
        assert "RMSNormalization" in operators
        assert "Attention" in operators


def test_weights_are_stored_once(trained: tuple[Path, Path]) -> None:
    _, out = trained
    manifest = read_manifest(out)
    plan = json.loads((out / "plan.json").read_bytes())
    size = sum(file.bytes for part in manifest.parts.values() for file in part.files)
    head = 2048 * 128 * 4  # tied to the embeddings, and turned
    numbers = 4 * (plan["parameters"]["base"] + plan["parameters"]["added"]) + head
    assert numbers < size < numbers * 1.15 + 2_000_000


@pytest.mark.parametrize(
    ("family", "how", "form"),
    [
        pytest.param("gemma3_text", KINDS, "unshared", marks=pytest.mark.slow),
        ("gpt2", {}, "shared"),
    ],
)
def test_other_families_keep_their_own_ways(
    family: str, how: Any, form: Any, tmp_path: Path
) -> None:
    """Sliding windows, two kinds of angles and scaled embeddings; learned positions."""
    base = save_tiny(tmp_path / "base", family, **how)
    adapter = perturbed_adapter(tmp_path / "a", base, "genieblue_skip", "rank=4")
    options = {"to": "onnx", "base": form, "prefill": 4, "context": 32}
    manifest = export_adapter(adapter, tmp_path / "out", **options)
    assert ("block.3" in manifest.parts) == (form == "unshared")
    model = load_adapter(adapter).float().eval()
    ids = [5, 9, 33, 70, 100, 101, 20, 3, 77, 61, 8, 40, 13]
    for path in ("text", "multimodal"):
        loop = open_loop(tmp_path / "out", manifest, path, OnCpu(tmp_path / "out"))
        found = [loop.read(ids[:9]), *(loop.step("decode", [token]) for token in ids[9:])]
        wanted = logits(model, path if form == "unshared" else "multimodal", ids)[8:]
        np.testing.assert_allclose(np.stack(found), wanted, atol=2e-4, rtol=2e-4)
    assert np.abs(logits(model, "text", ids) - logits(model, "multimodal", ids)).max() > 0.01


def logits(model: Any, path: str, ids: list[int]) -> Any:
    with torch.no_grad():
        if path == "multimodal":
            return model(torch.tensor([ids])).logits[0].numpy()
        with text_path(model):
            return model(torch.tensor([ids])).logits[0].numpy()


def test_a_prompt_may_go_through_token_by_token(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "a", base, "genieblue_skip", "rank=4")
    manifest = export_adapter(adapter, tmp_path / "out", to="onnx", prefill=1, context=16)
    for name in ("embeddings", "positions", "block.0", "copy.3"):
        files = [file.name for file in manifest.parts[name].files if file.graph]
        assert files == ["decode.onnx"], name
    model = load_adapter(adapter).float().eval()
    ids = [5, 9, 33, 70, 100, 101, 20, 3, 77]
    for path in ("text", "multimodal"):
        found = open_loop(tmp_path / "out", manifest, path, OnCpu(tmp_path / "out")).read(ids)
        np.testing.assert_allclose(found, logits(model, path, ids)[-1], atol=2e-4, rtol=2e-4)


def refused(adapter: Path, **options: Any) -> str:
    with pytest.raises(SurgeryError) as caught:
        prepare_export(adapter, to="onnx", **options)
    return str(caught.value)


def test_what_graphs_in_parts_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "a", base, "genieblue_skip", "rank=4")
    assert "A611" in refused(adapter, lora="merge")
    assert "A613" in refused(adapter, prefill=64, context=32)
    assert "A613" in refused(adapter, prefill=0)
    (tmp_path / "small.yaml").write_text(SMALL)
    assert "A618" in refused(adapter, target=str(tmp_path / "small.yaml"))
    token = "operations.experts.image_token_id=5"
    assert "A611" in refused(perturbed_adapter(tmp_path / "b", base, "cogvlm_skip", token))
    assert "A611" in refused(perturbed_adapter(tmp_path / "c", base, "full_finetune"))


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_folder(tmp_path: Path) -> None:
    """Killed once two blocks of the new one are written."""
    adapter = perturbed_adapter(tmp_path / "a", save_tiny(tmp_path / "base"), "lora", "rank=4")
    words = (str(adapter), "--to", "onnx", "--out", str(tmp_path / "out"), "--overwrite")
    command = [sys.executable, "-m", "surgery", "export", *words]
    export_adapter(adapter, tmp_path / "out", to="onnx", prefill=4, context=32)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as export:
        while export.poll() is None and not [*tmp_path.glob(".out.*/block.1/decode.onnx")]:
            time.sleep(0.001)
        export.kill()
    assert export.returncode == -signal.SIGKILL
    assert all(file.read_bytes() == content for file, content in before.items())
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert read_manifest(tmp_path / "out").parts["block.0"].files[-1].graph.window == 1024
    assert not [*tmp_path.glob(".out.*")]


def test_more_tokens_than_the_cache_takes_are_refused(trained: tuple[Path, Path]) -> None:
    with pytest.raises(SurgeryError, match="A614"):
        run_export(trained[1], "text", PROMPT, new_tokens=120, chat=False)


def test_a_mask_is_read_back() -> None:
    assert sliding_of(causal_mask(12, 0, 0)) is None
    assert sliding_of(causal_mask(12, 0, 0, 5)) == 5
    mask = causal_mask(3, 4, 2)[0, 0] == 0
    assert mask.tolist() == [
        [True, True, False, False, True, False, False],
        [True, True, False, False, True, True, False],
        [True, True, False, False, True, True, True],
    ]
    with pytest.raises(ValueError, match="neither causal"):
        sliding_of(np.zeros((1, 1, 3, 3)) + LOWEST)
