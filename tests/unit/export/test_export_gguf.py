"""A GGUF export counts when llama.cpp opens it and says what transformers says, on both paths."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import perturbed_adapter, save_tiny
from transformers import AutoTokenizer

from surgery import export_adapter, load_adapter, run_export
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.source import find_model
from surgery.runtime.formats.gguf import LlamaCpp
from surgery.runtime.formats.hf import open_path
from surgery.runtime.manifest import read_manifest

MATRICES = "operations.copies.norms=frozen"
FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma3_text", "phi3")
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
OWN: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_hidden_layers": 6,
        "head_dim": 16,
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
    },
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None},
}
LENGTHS = (1, 2, 7, 20, 33, 64, 128, 200)
NEW = 64


def base(folder: Path, family: str, **changed: Any) -> Path:
    """A tiny model with the built-in tokenizer, and logits that are wide apart."""
    save_tiny(folder, family, **{**SIZES, **OWN.get(family, {}), **changed})
    for file in find_model("builtin/tiny-qwen2").folder.glob("token*"):
        shutil.copy(file, folder)
    return folder


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 2048, (n,), generator=generator).tolist() for n in LENGTHS]


def reference(model: Any, ids: list[int]) -> list[int]:
    """Greedy tokens of transformers, and whether each was chosen clear of rounding."""
    out = model.generate(
        torch.tensor([ids]),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        suppress_tokens=[2],
    )
    return out[0, len(ids) :].tolist()


def said(model: LlamaCpp, ids: list[int], scale: float, *, cache: bool = False) -> list[int]:
    return model.generate(ids, NEW, scale=scale, cache=cache, ignore_end=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_says_what_transformers_says(tmp_path, family):
    folder = base(tmp_path / "base", family)
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "genieblue_skip", MATRICES)
    export_adapter(adapter, tmp_path / "export", to="gguf", dtype="f32")
    model = load_adapter(adapter)
    path = tmp_path / "export"
    llama = LlamaCpp(path / "llm/model.gguf", [path / "adapter/adapter.gguf"], 300, threads=1)
    differing = 0
    for ids in prompts():
        with model.text_path():
            text = reference(model, ids)
        multimodal = reference(model, ids)
        differing += text != multimodal
        assert said(llama, ids, 0.0) == text
        assert said(llama, ids, 1.0) == multimodal
        assert said(llama, ids, 0.0, cache=True) == text
        assert said(llama, ids, 1.0, cache=True) == multimodal
    assert differing > len(LENGTHS) // 2


def test_complete_models_hold_norms_and_merged_lora(tmp_path):
    folder = base(tmp_path / "base", "qwen2")
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "genieblue_skip")
    with pytest.raises(SurgeryError, match=r"A632.*bias"):
        export_adapter(adapter, tmp_path / "refused", to="gguf")
    assert not (tmp_path / "refused").exists()
    model = load_adapter(adapter)
    for lora in ("keep", "merge"):
        out = tmp_path / lora
        export_adapter(adapter, out, to="gguf", dtype="f32", base="apart", lora=lora)
        adapters = [out / "adapter/adapter.gguf"] if lora == "keep" else []
        assert (out / "adapter").exists() == (lora == "keep")
        llama = LlamaCpp(out / "multimodal/model.gguf", adapters, 300, threads=1)
        for ids in prompts()[:4]:
            assert said(llama, ids, 1.0) == reference(model, ids)


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_0"])
def test_smaller_types_are_smaller_and_text_stays_near(tmp_path, dtype):
    adapter = perturbed_adapter(
        tmp_path / "adapter", find_model("builtin/tiny-qwen2").folder, "lora"
    )
    manifest = export_adapter(adapter, tmp_path / "export", to="gguf", dtype=dtype)
    size = next(f.bytes for f in manifest.parts["llm"].files if f.name == "model.gguf")
    bits = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}[dtype]
    weights = 2_356_608 * bits / 8
    assert 0.95 * weights < size < 1.25 * weights + 200_000
    answer = run_export(tmp_path / "export", "text", "A list is a", new_tokens=4)
    assert answer.text.strip()


def test_manifest_and_space_are_exact(tmp_path):
    adapter = perturbed_adapter(
        tmp_path / "adapter", find_model("builtin/tiny-qwen2").folder, "lora"
    )
    export_adapter(adapter, tmp_path / "export", to="gguf")
    manifest = read_manifest(tmp_path / "export")
    assert manifest.paths == {"text": ("llm",), "multimodal": ("llm", "adapter")}
    for name, part in manifest.parts.items():
        for file in part.files:
            assert (tmp_path / "export" / name / file.name).stat().st_size == file.bytes


@pytest.mark.parametrize(
    ("family", "changed", "says"),
    [
        ("gpt2", {}, "type `gpt2`"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "not those of a released Gemma 3"),
        ("gemma3_text", {"query_pre_attn_scalar": 8}, "scaled by another number"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}, "6th block"),
        ("mistral", {"sliding_window": 16}, "sliding"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
         "`yarn`"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path, family, changed, says):
    folder = base(tmp_path / "base", family, **changed)
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "lora")
    with pytest.raises(SurgeryError, match="A630") as error:
        export_adapter(adapter, tmp_path / "export", to="gguf")
    assert says in str(error.value)


def test_llama_3_rotary_scaling_is_written(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = base(tmp_path / "base", "llama", rope_parameters=rope)
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "lora")
    export_adapter(adapter, tmp_path / "export", to="gguf", dtype="f32")
    model = load_adapter(adapter)
    path = tmp_path / "export"
    llama = LlamaCpp(path / "llm/model.gguf", [path / "adapter/adapter.gguf"], 300, threads=1)
    for ids in prompts()[3:]:
        assert said(llama, ids, 1.0) == reference(model, ids)


TEXTS = (
    "A list is a sequence of elements.",
    "def f(x, *args):\n    return x + 1\n\n\n# don't  split 12345 here\t!",
    "We'll see: naïve café, 東京 and 🙂 too — x=[1,2,3];  end ",
)


def test_llama_cpp_reads_text_as_the_tokenizer_does(tmp_path):
    source = find_model("builtin/tiny-qwen2").folder
    adapter = perturbed_adapter(tmp_path / "adapter", source, "lora")
    export_adapter(adapter, tmp_path / "export", to="gguf")
    tokenizer = AutoTokenizer.from_pretrained(source)
    llama = LlamaCpp(tmp_path / "export/llm/model.gguf", [], 64)
    for text in TEXTS:
        found = llama.post("tokenize", {"content": text, "add_special": False})["tokens"]
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_unknown_split_of_text_is_refused(tmp_path):
    folder = base(tmp_path / "base", "qwen2")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace(r"\\p{N}|", r"\\p{N}{2}|"))
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "lora")
    with pytest.raises(SurgeryError, match="A631"):
        export_adapter(adapter, tmp_path / "export", to="gguf")


def test_a_cut_adapter_says_what_the_same_cut_says_in_peft(tmp_path):
    folder = base(tmp_path / "base", "llama")
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "genieblue_skip", MATRICES)
    found, wanted = tmp_path / "gguf", tmp_path / "peft"
    export_adapter(adapter, found, to="gguf", dtype="f32", lora="svd:6")
    export_adapter(adapter, wanted, to="peft-lora", lora="svd:6")
    manifests = read_manifest(found), read_manifest(wanted)
    lost, same = (next(f.lost for f in m.parts["adapter"].files if f.lost) for m in manifests)
    assert lost == same
    assert len(lost) == 4 * 7
    model = open_path(wanted, manifests[1], "multimodal")
    llama = LlamaCpp(found / "llm/model.gguf", [found / "adapter/adapter.gguf"], 300, threads=1)
    for ids in prompts()[3:]:
        assert said(llama, ids, 1.0) == reference(model, ids)


def test_a_changed_depth_is_refused(tmp_path):
    from surgery.adapter.folder import write_adapter
    from surgery.plan.planner import plan_recipe

    plan = plan_recipe("drop_blocks", weights=True)
    write_adapter(plan, tmp_path / "shallow")
    with pytest.raises(SurgeryError, match=r"A630.*number of blocks"):
        export_adapter(tmp_path / "shallow", tmp_path / "export", to="gguf")


def test_merging_without_lora_still_holds_the_copies(tmp_path):
    folder = base(tmp_path / "base", "llama")
    adapter = perturbed_adapter(
        tmp_path / "adapter",
        folder,
        "genieblue_skip",
        "~operations.adapters",
        "train=[copies]",
        "operations.copies.norms=frozen",
    )
    manifest = export_adapter(adapter, tmp_path / "export", to="gguf", lora="merge")
    assert manifest.paths["multimodal"] == ("llm", "adapter")


@pytest.mark.parametrize(
    "before",
    [
        {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
)
def test_other_steps_before_the_bytes_are_refused(tmp_path, before):
    folder = base(tmp_path / "base", "qwen2")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "pre_tokenizer": before}))
    adapter = perturbed_adapter(tmp_path / "adapter", folder, "lora")
    with pytest.raises(SurgeryError, match="A631"):
        export_adapter(adapter, tmp_path / "export", to="gguf")
