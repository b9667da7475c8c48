"""`--to qnn`: what was compiled says in the emulator what the quantized graphs say on the CPU."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from same_tokens import logits, same_tokens
from tiny import perturbed_adapter, shallow, trained_adapter
from transformers import AutoTokenizer

from surgery.data.samples.texts import CALIBRATION
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.calibration import Calibration
from surgery.export.calibration_data import prompts_of
from surgery.export.export import export_adapter, prepare_export
from surgery.model.source import find_model
from surgery.npu.deployment import deployment
from surgery.npu.qualcomm.arrays import read_arrays
from surgery.npu.qualcomm.toolchain import why_not
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.runtime.formats.qnn import OnEmulator, OnReference, open_emulator
from surgery.runtime.graph_loop import open_loop
from surgery.runtime.manifest import read_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
BUILT_IN = find_model("builtin/tiny-qwen2").folder
STEPS = 32
PROMPT = "A list is a thing that holds many words, and one can read each of them in turn. Then"
COPIES = """\
defaults: [base, _self_]
operations:
  copies: {op: duplicate, blocks: all}
train: [copies]
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that was killed behind its first block, and went on."""
    folder = tmp_path_factory.mktemp("qnn")
    adapter = trained_adapter("genieblue_skip", folder)
    out: Path = folder / "out"
    made = folder / ".out.work" / "made"
    words = ("--to", "qnn", "--target", "snapdragon", "--prefill", "16", "--context", "128")
    command = [sys.executable, "-m", "surgery", "export", str(adapter), "--out", str(out), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as export:
        while export.poll() is None and not (made / "block.0.json").is_file():
            time.sleep(0.05)
        export.kill()
    assert not out.exists()
    before = (made / "block.0" / "decode_qnn.bin").stat().st_mtime_ns
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = (out / "block.0" / "decode_qnn.bin").stat().st_mtime_ns
    assert after == before, "it was made anew"
    return out


def test_the_emulator_says_what_the_quantized_reference_says(out: Path) -> None:
    """Word for word, but where the reference itself is within rounding of another word."""
    manifest = read_manifest(out)
    ids = AutoTokenizer.from_pretrained(BUILT_IN)(PROMPT)["input_ids"]
    with open_emulator(manifest) as emulator:
        engines = (OnReference(out), OnEmulator(out, emulator))
        for path in ("text", "multimodal"):
            words = open_loop(out, manifest, path, engines[0]).generate(ids, STEPS, ())
            loops = (open_loop(out, manifest, path, engine) for engine in engines)
            reference, found = (logits(loop, ids, words) for loop in loops)
            same_tokens(reference, found)
            assert len({*words}) > 8, "a model that says few words proves little"


def test_every_block_is_compiled_and_its_loss_is_told(out: Path) -> None:
    manifest = read_manifest(out)
    compiled = {name for name, part in manifest.parts.items() if part.quantisation == "w4a16"}
    blocks = {f"block.{index}" for index in range(12)}
    assert compiled == {*blocks, "copy.3", "copy.7", "copy.11", "head"}
    for name in compiled:
        files = {file.name: file for file in manifest.parts[name].files}
        graphs = [file.graph for file in files.values() if file.graph]
        assert {graph.phase for graph in graphs} == (
            {"both"} if name == "head" else {"prefill", "decode"}
        )
        for graph in graphs:
            assert files[graph.weights].bytes > 0
            assert graph.cosine.keys() == {
                p for p, parts in manifest.paths.items() if name in parts
            }
            for cosines in graph.cosine.values():
                assert cosines.keys() == {value.name for value in graph.outputs}
                assert min(cosines.values()) > 0.95
    assert [file.name for file in out.parent.iterdir() if file.name.startswith(".")] == []


def test_the_plan_says_what_is_written(out: Path) -> None:
    """Within 3 %: the device's files, and those by which the CPU checks them."""
    manifest = read_manifest(out)
    device = reference = 0
    for part in manifest.parts.values():
        for file in part.files if part.kind != "tokenizer" else ():
            compiled = part.quantisation != "none" and not file.name.endswith(".bin")
            device += 0 if compiled else file.bytes
            reference += file.bytes if compiled else 0
    plan = plan_recipe(load_recipe("genieblue_skip"))
    costs = deployment(plan, "snapdragon").costs
    cost = next(c for c in costs if (c.recipe, c.base) == (plan.recipe.name, "unshared"))
    assert cost.exported is not None
    assert cost.exported.device == pytest.approx(device, rel=0.03)
    assert cost.exported.reference == pytest.approx(reference, rel=0.03)
    assert cost.exported.total == pytest.approx(device + reference, rel=0.03)


def test_sharing_its_blocks_costs_text_nothing(tmp_path: Path) -> None:
    """Beside LoRA a block gives what the base's own gives that is quantized alone.

    To the bit in the reference; the NPU's compiler fuses the two otherwise, and rounds so.
    """
    base = shallow(tmp_path / "base")
    (tmp_path / "copies.yaml").write_text(COPIES)
    shared, alone = (
        on_both_engines(perturbed_adapter(tmp_path / name, base, recipe))
        for name, recipe in (("shared", "lora"), ("alone", str(tmp_path / "copies.yaml")))
    )
    np.testing.assert_array_equal(shared[0], alone[0])
    assert np.corrcoef(shared[1].ravel(), alone[1].ravel())[0, 1] > 0.999999
    np.testing.assert_array_equal(shared[1].argmax(-1), alone[1].argmax(-1))


def on_both_engines(adapter: Path) -> list[np.ndarray]:
    """Logits of the text path behind each word, on the reference and in the emulator."""
    out = adapter.with_name(f"{adapter.name}.out")
    manifest = export_adapter(adapter, out, to="qnn", target="snapdragon", prefill=1, context=64)
    ids = AutoTokenizer.from_pretrained(BUILT_IN)(PROMPT)["input_ids"]
    with open_emulator(manifest) as emulator:
        engines = (OnReference(out), OnEmulator(out, emulator))
        loops = (open_loop(out, manifest, "text", engine) for engine in engines)
        return [np.stack([loop.step("decode", [word]) for word in ids]) for loop in loops]


def test_the_users_records_are_calibrated_on(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN)
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "One."}\n{"text": "And another one."}\n')
    rows = prompts_of(tokenizer, file, 64)
    mine = [tokenizer.decode(row.ids, skip_special_tokens=True) for row in rows]
    assert mine == ["One.", "And another one."]
    assert len(prompts_of(tokenizer, None, 64)) == len(CALIBRATION)


def test_a_device_must_be_named(tmp_path: Path) -> None:
    adapter = perturbed_adapter(tmp_path / "adapter", BUILT_IN, "lora")
    for target in (None, "dimensity"):
        with pytest.raises(SurgeryError, match="A617"):
            prepare_export(adapter, to="qnn", target=target)


def test_a_prompt_shorter_than_a_step_shows_a_range_of_the_cache(tmp_path: Path) -> None:
    """Read in one step it would find the cache empty, and later prompts lose their past."""
    calibration = Calibration(tmp_path, {"text": ["embeddings"]}, {"text": {}})
    calibration.begin([([*range(3, 23)], None)], {"prefill": 64, "decode": 1})
    waiting = sorted(tmp_path.rglob("*.npz"))
    places = [read_arrays(file)["piece"].tolist() for file in waiting]
    reading = [(start, count) for is_prefill, start, count in places if is_prefill]
    assert reading == [(0, 6), (6, 6)]
    assert [start for is_prefill, start, _ in places if not is_prefill] == [*range(12, 20)]


def test_records_that_cannot_be_read_leave_nothing(tmp_path: Path) -> None:
    adapter = perturbed_adapter(tmp_path / "a", shallow(tmp_path / "base"), "lora")
    how = {"target": "snapdragon", "prefill": 1, "context": 64, "calibration": tmp_path / "no.txt"}
    with pytest.raises(SurgeryError, match="D101"):
        export_adapter(adapter, tmp_path / "out", to="qnn", **how)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "base"]
