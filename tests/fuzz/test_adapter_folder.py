"""Adapter folders and exports with any edit of one file: refused by a sentence, or harmless.

Harmless means that the adapter loads with the same logits, and that its export with LoRA merged
holds the same bytes.
"""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import perturbed_adapter, save_tiny, tokens

from fuzz.judge import inputs
from fuzz.spoil import spoilt, spoilt_json
from surgery.adapter.folder import load_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter
from surgery.runtime.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG, PLAN, WEIGHTS = "adapter_config.json", "plan.json", "adapter_model.safetensors"
MANIFEST = "manifest.json"
RECIPES = ("genieblue_skip", "lora", "cogvlm_post")
_MEANT = """use_dora use_rslora exclude_modules layer_replication lora_bias bias all lora_only
rank_pattern alpha_pattern target_modules modules_to_save trainable_token_indices layers_pattern
layers_to_transform target_parameters init_lora_weights pissa olora loftq eva gaussian q_proj
fan_in_fan_out lora_dropout task_type CAUSAL_LM peft_type LORA SURGERY_ROUTED IA3 auto_mapping
revision model.layers.0.self_attn.q_proj fingerprint strided adapter checksum vision alpha rank seed
builtin/tiny-vit builtin/tiny-qwen2 train freeze blocks post 1/2 text multimodal llm lora hf onnx
qnn ../elsewhere parts paths BF16 F16 F32 I32 __metadata__ data_offsets"""
WORDS = _MEANT.split()


@cache
def cache_root() -> Path:
    """A folder with a base, an adapter of each recipe, and an export."""
    folder = Path(tempfile.mkdtemp(prefix="surgery-fuzz-"))
    save_tiny(folder / "base", dtype=torch.bfloat16)
    for recipe in RECIPES:
        perturbed_adapter(folder / recipe, folder / "base", recipe)
    export_adapter(folder / "lora", folder / "export", lora="keep")
    return folder


@pytest.fixture(scope="module", autouse=True)
def clean() -> Any:
    yield
    shutil.rmtree(cache_root(), ignore_errors=True)
    for made in (cache_root, unedited):  # a worker may come back to this module
        made.cache_clear()


def seen(folder: Path) -> tuple[bytes, bytes]:
    """The model of an adapter folder: its logits, and the weights of its export."""
    with torch.no_grad():
        logits = load_adapter(folder)(tokens()).logits.float()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        try:
            export_adapter(folder, out)
        except SurgeryError as error:
            return logits.numpy().tobytes(), error.diagnostics[0].code.encode()
        files = sorted((out / "multimodal").glob("*.safetensors"))
        return logits.numpy().tobytes(), b"".join(file.read_bytes() for file in files)


@cache
def unedited(recipe: str) -> tuple[bytes, bytes]:
    return seen(cache_root() / recipe)


def is_refused_or_harmless(recipe: str, name: str, content: bytes) -> bool:
    """Whether an adapter folder with another content of one file is; what it is in the end."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        shutil.copytree(cache_root() / recipe, folder)
        (folder / name).write_bytes(content)
        try:
            return seen(folder) == unedited(recipe)
        except SurgeryError:
            return True


def read(recipe: str, name: str) -> Any:
    return json.loads((cache_root() / recipe / name).read_bytes())


@inputs(0.12)
@given(st.data())
def test_an_edited_config_is_refused_or_harmless(data):
    recipe = data.draw(st.sampled_from(RECIPES))
    content = data.draw(spoilt_json([read(recipe, CONFIG)], WORDS))
    assert is_refused_or_harmless(recipe, CONFIG, content)


@inputs(0.12)
@given(st.data())
def test_an_edited_plan_is_refused_or_harmless(data):
    recipe = data.draw(st.sampled_from(RECIPES))
    content = data.draw(spoilt_json([read(recipe, PLAN)], WORDS))
    assert is_refused_or_harmless(recipe, PLAN, content)


@inputs(0.12)
@given(st.data())
def test_an_edited_header_is_refused_or_harmless(data):
    recipe = data.draw(st.sampled_from(RECIPES))
    raw = (cache_root() / recipe / WEIGHTS).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    if data.draw(st.booleans()):
        first, second = data.draw(st.lists(st.sampled_from(list(header)), min_size=2, max_size=2))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", ""]))
        changed = exchanged(header, first, second, key)
    else:
        changed = data.draw(spoilt([header], WORDS))
    text = json.dumps(changed, allow_nan=True).encode()
    content = len(text).to_bytes(8, "little") + text + raw[8 + size :]
    assert is_refused_or_harmless(recipe, WEIGHTS, content)


@inputs(0.06)
@given(st.data())
def test_a_file_with_other_bytes_is_refused_or_harmless(data):
    recipe = data.draw(st.sampled_from(RECIPES))
    name = data.draw(st.sampled_from([CONFIG, PLAN, "recipe.yaml"]))
    raw = bytearray((cache_root() / recipe / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw), len(raw) // 2, 0]))
    assert is_refused_or_harmless(recipe, name, bytes(raw[:cut]))


@inputs(0.06)
@given(st.data())
def test_an_edited_manifest_is_refused_or_the_same(data):
    original = json.loads((cache_root() / "export" / MANIFEST).read_bytes())
    content = data.draw(spoilt_json([original], WORDS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / MANIFEST).write_bytes(content)
        try:
            found = read_manifest(folder)
        except SurgeryError:
            return
    same = read_manifest(cache_root() / "export")
    assert found.model_copy(update={"sha256": same.sha256}) == same


def exchanged(header: Any, first: str, second: str, key: str) -> Any:
    """A header in which two tensors have changed places, or one field of theirs."""
    names = {first: second, second: first}
    if not key or "__metadata__" in names:
        return {names.get(name, name): entry for name, entry in header.items()}
    swapped = {name: {**header[name], key: header[names[name]][key]} for name in names}
    return {**header, **swapped}
