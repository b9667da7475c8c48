"""Model folders with any mistakes in config.json or in the weights' header, and saved plans."""

import itertools
import json
import struct
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONVERTED, FAMILIES, tiny_config
from transformers import CLIPVisionConfig, LlavaConfig, Qwen2Config

from fuzz.judge import ends_well, inputs
from fuzz.spoil import LONG, spoilt_json
from surgery.adapter.side_files import saved_plan
from surgery.model.source import find_model
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import packaged_recipes
from surgery.storage.safetensors.dtypes import DTYPE_BYTES

_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
LLAVA = LlavaConfig(
    vision_config=CLIPVisionConfig(**_NARROW, num_hidden_layers=2, image_size=28, patch_size=14),
    text_config=Qwen2Config(**_NARROW, vocab_size=64, num_hidden_layers=2, num_key_value_heads=2),
    image_token_index=3,
)
CONFIGS = [
    *(json.loads(tiny_config(family).to_json_string()) for family in (*FAMILIES, *CONVERTED)),
    json.loads(LLAVA.to_json_string()),
    find_model("builtin/tiny-qwen2").config(),
]
_MEANT = """model_type architectures auto_map text_config vision_config quantization_config
quant_method num_hidden_layers layer_types rope_scaling rope_type default linear yarn dtype float32
tie_word_embeddings bitsandbytes gptq qwen2 llama gemma3_text t5 clip mamba llava _name_or_path
sub_configs is_encoder_decoder attn_implementation torch_dtype use_cache pad_token_id id2label"""
WORDS = _MEANT.split()
HEADER = find_model("builtin/tiny-qwen2").folder / "model.safetensors"
FOLDERS = itertools.count()


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return place_in(tmp_path)


def place_in(folder):
    """A maker of new folders."""

    def made():
        new = folder / str(next(FOLDERS))
        new.mkdir()
        return new

    return made


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "3",
        "{}",
        '{"model_type": null}',
        f'{{"model_type": "{LONG}"}}',
        '{"model_type": "../families/bloom"}',
        '{"model_type": "a\\u0000b"}',
        '{"model_type": "qwen2", "text_config": 1.5}',
        '{"model_type": "llava", "text_config": 1.5}',
        '{"model_type": "qwen2", "num_hidden_layers": 2147483648}',
        '{"model_type": "gpt2", "n_layer": 1e400}',
        '{"model_type": "qwen2", "layer_types": ["x"]}',
        '{"model_type": "qwen2", "auto_map": 3}',
        '{"model_type": ["qwen2"]}',
        "[" * 100_000,
        '{"a": ' * 100_000,
        "",
        "\ufeff{}",
    ],
    ids=range(19),
)
def test_a_config_that_is_wrong_as_a_whole_is_refused_with_a_sentence(workspace, content):
    folder = workspace()
    (folder / "config.json").write_text(content)
    assert ends_well("inspect", str(folder)).code == 3


@given(
    data=spoilt_json(CONFIGS, WORDS),
    command=st.sampled_from(["inspect", "inspect", "plan lora model=", "plan sighted vision="]),
)
@inputs(0.15)
def test_a_spoilt_config_is_read_or_refused_with_a_sentence(workspace, data, command):
    folder = workspace()
    (folder / "config.json").write_bytes(data)
    *words, last = command.split()
    ends_well(*words, *([f"{last}{folder}"] if last.endswith("=") else [last, str(folder)]))


@cache
def header() -> dict:
    """The header of the built-in model's weights."""
    with HEADER.open("rb") as stream:
        return json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))


_FEW = dict(itertools.islice(header().items(), 6))
TYPES = ["dtype", "shape", "data_offsets", "__metadata__", *DTYPE_BYTES]


@given(
    text=spoilt_json([_FEW, header()], TYPES),
    length=st.sampled_from([None] * 8 + [0, 1, 2**31, 2**63, 2**64 - 1, 100_000_000]),
    tail=st.sampled_from([b"", b"\0", b"\0" * 1000, None, None, None]),
    index=st.none() | spoilt_json([{"metadata": {}, "weight_map": {"a": "a.safetensors"}}]),
)
@inputs(0.15)
def test_spoilt_weights_are_read_or_refused_with_a_sentence(workspace, text, length, tail, index):
    folder = workspace()
    (folder / "config.json").write_bytes((HEADER.parent / "config.json").read_bytes())
    head = struct.pack("<Q", len(text) if length is None else length) + text
    if tail is None:
        tail = HEADER.read_bytes()[8 + len(json.dumps(header())) :]
    (folder / ("model.safetensors" if index is None else "a.safetensors")).write_bytes(head + tail)
    if index is not None:
        (folder / "model.safetensors.index.json").write_bytes(index)
    ends_well("plan", "lora", f"model={folder}")


@cache
def plans() -> list[dict]:
    """What `surgery plan --out` saves for every packaged recipe that plans on its own model."""
    recipes = [load_recipe(name) for name in packaged_recipes()]
    return [json.loads(saved_plan(plan_recipe(recipe))) for recipe in recipes]


_KEYS = """format_version surgery recipe model edits depth parameters stages bytes diagnostics
operations op lora blocks rank train vision revision source fingerprint name knobs projector"""


@given(data=st.deferred(lambda: spoilt_json(plans(), [*_KEYS.split(), "builtin/tiny-qwen2"])))
@inputs(0.1)
def test_a_spoilt_plan_is_applied_or_refused_with_a_sentence(workspace, data):
    folder = workspace()
    (folder / "plan.json").write_bytes(data)
    out = folder / "out"
    code = ends_well("apply", str(folder / "plan.json"), "--out", str(out)).code
    assert out.exists() == (code == 0)


DEVICES = ["/dev/zero", "/proc/self/mem"]
TAKING = [
    "apply {}.json",
    "apply plan.json",
    "plan {}",
    "plan recipe.yaml",
    "lint {}",
    "inspect {}",
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "words", [*TAKING, "inspect {}", "lint plan.json", "inspect .", "plan lora model=."]
)
def test_a_device_is_refused_with_a_sentence(workspace, monkeypatch, device, words):
    folder = workspace()
    monkeypatch.chdir(folder)
    for name in ("plan.json", "recipe.yaml", "config.json"):
        (folder / name).symlink_to(device)
    assert ends_well(*words.format(device).split()).code in (2, 3)
