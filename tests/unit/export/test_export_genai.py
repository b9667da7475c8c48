"""An `ort-genai` export counts when onnxruntime-genai opens it and says what transformers says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from tiny import greedy, perturbed_adapter, save_tiny, shallow
from transformers import AutoTokenizer

from surgery.adapter.folder import load_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter, prepare_export
from surgery.model.source import find_model
from surgery.paths.switching import text_path
from surgery.runtime.formats.ort_genai import generate, open_model
from surgery.runtime.run import run_export

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = find_model("builtin/tiny-qwen2").folder
PROMPT = "A list is a thing that holds many words, and one can read each of them in turn. Then"
LENGTHS = (1, 2, 7, 20, 33, 64)
NEW = 32
ALONE = """
import json, sys
sys.modules["surgery"] = None
import onnxruntime_genai as og
folder, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = og.Model(folder)
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(ids) + 12)
generator = og.Generator(model, params)
if adapter:
    adapters = og.Adapters(model)
    adapters.load(adapter, "multimodal")
    generator.set_active_adapter(adapters, "multimodal")
generator.append_tokens(ids)
for _ in range(12):
    generator.generate_next_token()
print(json.dumps([int(i) for i in generator.get_sequence(0)[len(ids):]]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A perturbed adapter with a copy and LoRA, and its export."""
    folder = tmp_path_factory.mktemp("genai")
    base = shallow(folder / "base")
    adapter = perturbed_adapter(
        folder / "adapter", base, "genieblue_skip", "operations.copies.blocks=[1]"
    )
    export_adapter(adapter, folder / "out", to="ort-genai")
    return adapter, folder / "out"


def wanted(adapter: Path, ids: list[int], steps: int) -> tuple[list[int], list[int]]:
    model = load_adapter(adapter).float().eval()
    with text_path(model):
        text = greedy(model, ids, steps)
    return text, greedy(model, ids, steps)


def until_end(tokens: list[int], end: int = 2) -> list[int]:
    """The tokens that the runtime makes: none behind the end of an answer."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    session = ort.InferenceSession(folder / "model.onnx")
    feeds: dict[str, Any] = {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    found: np.ndarray = session.run(["logits"], feeds)[0]
    return found


def test_both_paths_say_what_torch_says_with_this_package_hidden(
    exported: tuple[Path, Path],
) -> None:
    adapter, out = exported
    ids = AutoTokenizer.from_pretrained(BASE)(PROMPT)["input_ids"]
    text, seen = wanted(adapter, ids, 12)
    assert text != seen, "the adapter changes nothing"
    for file, tokens in (("", text), (str(out / "model/mm.onnx_adapter"), seen)):
        command = [sys.executable, "-c", ALONE, str(out / "model"), file, json.dumps(ids)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(done.stdout) == tokens


def test_run_takes_the_path(exported: tuple[Path, Path]) -> None:
    adapter, out = exported
    ids = AutoTokenizer.from_pretrained(BASE)(PROMPT)["input_ids"]
    text, seen = wanted(adapter, ids, 12)
    for path, tokens in (("text", text), ("multimodal", seen)):
        found = run_export(out, path, PROMPT, new_tokens=12, chat=False)  # type: ignore[arg-type]
        assert list(found.tokens) == tokens


def test_text_is_the_same_to_the_bit_without_the_adapter_file(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    out = exported[1]
    for file in (out / "model").iterdir():
        if file.name != "mm.onnx_adapter":
            (tmp_path / file.name).symlink_to(file)
    ids = list(range(3, 30))
    assert np.array_equal(logits(out / "model", ids), logits(tmp_path, ids))
    assert generate(open_model(tmp_path), ids, 8, ()) == generate(
        open_model(out / "model"), ids, 8, ()
    )


def test_each_weight_is_on_disk_once(exported: tuple[Path, Path]) -> None:
    adapter, out = exported
    weights = (out / "model/weights.bin").stat().st_size
    base = (adapter.parent / "base/model.safetensors").stat().st_size
    assert abs(weights - base) < 4096 * 40, "pages are filled up"
    own = (adapter / "adapter_model.safetensors").stat().st_size
    assert abs((out / "model/mm.onnx_adapter").stat().st_size - own) < 8192


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma3_text", "phi3"])
def test_families(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family, initializer_range=0.2)
    adapter = perturbed_adapter(tmp_path / "adapter", base, "genieblue_skip")
    export_adapter(adapter, tmp_path / "out", to="ort-genai")
    folder = tmp_path / "out/model"
    model = open_model(folder)
    generator = torch.Generator().manual_seed(0)
    differ = 0
    for length in LENGTHS:
        ids = torch.randint(3, 128, (length,), generator=generator).tolist()
        text, seen = map(until_end, wanted(adapter, ids, NEW))
        differ += text != seen
        assert generate(model, ids, NEW, ()) == text
        assert generate(model, ids, NEW, (), folder / "mm.onnx_adapter") == seen
    assert differ, "the adapter changes nothing"


def test_refuses_before_the_long_work(exported: tuple[Path, Path]) -> None:
    for options, code in (({"base": "apart"}, "A635"), ({"lora": "merge"}, "A611")):
        with pytest.raises(SurgeryError) as error:
            prepare_export(exported[0], to="ort-genai", **options)  # type: ignore[arg-type]
        assert error.value.diagnostics[0].code == code
