"""`--to peft-lora`: plain PEFT opens it and computes both paths, exactly or cut to a rank."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import applied, perturbed_adapter, save_tiny, tokens, trained_adapter
from tiny_llava import save_llava
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from surgery import evaluate_adapter, export_adapter, load_adapter, run_export, verify_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.runtime.manifest import read_manifest

FROZEN = "operations.copies.norms=frozen"
BASE = "base_model.model."


def opened(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    """The export in plain transformers and PEFT."""
    model = kind.from_pretrained(folder / "model", dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(folder / "adapter")).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(tokens()).logits


def genieblue(tmp_path: Path, family: str = "qwen2", *overrides: str) -> Path:
    base = save_tiny(tmp_path / "base", family)
    return perturbed_adapter(tmp_path / "adapter", base, "genieblue_skip", FROZEN, *overrides)


def adapter_weights(export: Path) -> dict[str, torch.Tensor]:
    return load_file(export / "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "phi3", "gpt2"])
def test_peft_computes_both_paths(tmp_path, family):
    adapter = genieblue(tmp_path, family)
    export_adapter(adapter, tmp_path / "export", to="peft-lora")
    model, found = load_adapter(adapter), opened(tmp_path / "export")
    multimodal = logits(model)
    with model.text_path():
        text = logits(model)
    with found.disable_adapter():
        assert torch.equal(logits(found), text)
    assert (multimodal - text).abs().max() > 0.01
    torch.testing.assert_close(logits(found), multimodal, atol=2e-5, rtol=1e-5)


def test_the_adapter_is_one_that_vllm_reads(tmp_path):
    """One alpha over one rank is the scale of all, whatever rank the tensors have."""
    adapter = genieblue(tmp_path)
    export_adapter(adapter, tmp_path / "export", to="peft-lora")
    config = json.loads((tmp_path / "export/adapter/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 32
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) == {8, 16}
    assert config["modules_to_save"] is None
    assert not config.get("use_rslora")
    names = {
        name.removeprefix(BASE).split(".lora_")[0] for name in adapter_weights(tmp_path / "export")
    }
    assert names == set(config["target_modules"])


def test_svd_is_the_nearest_of_its_rank_and_says_what_it_loses(tmp_path):
    adapter, rank = genieblue(tmp_path), 5
    exact, small = tmp_path / "exact", tmp_path / "small"
    export_adapter(adapter, exact, to="peft-lora")
    export_adapter(adapter, small, to="peft-lora", lora=f"svd:{rank}")
    (file,) = (f for f in read_manifest(small).parts["adapter"].files if f.lost)
    whole, found = adapter_weights(exact), adapter_weights(small)
    paths = {name.split(".lora_")[0] for name in whole}
    assert set(file.lost) == {path.removeprefix(BASE) for path in paths}
    for path in paths:
        change = whole[f"{path}.lora_B.weight"] @ whole[f"{path}.lora_A.weight"]
        a, b = found[f"{path}.lora_A.weight"], found[f"{path}.lora_B.weight"]
        assert len(a) == b.shape[1] == rank
        values = torch.linalg.svdvals(change.double())
        lost = (values[rank:].norm() / values.norm()).item()
        assert file.lost[path.removeprefix(BASE)] == pytest.approx(lost, abs=1e-5)
        assert ((change - b @ a).norm() / change.norm()).item() == pytest.approx(lost, abs=1e-5)
    assert not any(f.lost for f in read_manifest(exact).parts["adapter"].files)
    text, cut = load_adapter(adapter), opened(small)
    with text.text_path(), cut.disable_adapter():
        assert torch.equal(logits(cut), logits(text))


def test_a_rank_above_all_cuts_nothing(tmp_path):
    adapter = genieblue(tmp_path)
    for name, lora in (("exact", None), ("cut", "svd:512")):
        export_adapter(adapter, tmp_path / name, to="peft-lora", lora=lora)
    exact, found = adapter_weights(tmp_path / "exact"), adapter_weights(tmp_path / "cut")
    assert exact.keys() == found.keys()
    assert all(torch.equal(exact[name], found[name]) for name in exact)


def test_run_says_what_the_adapter_says(tmp_path):
    adapter = trained_adapter("lora", tmp_path)
    export_adapter(adapter, tmp_path / "export", to="peft-lora")
    model = load_adapter(adapter).float()
    for path in ("text", "multimodal"):
        answer = run_export(tmp_path / "export", path, "Bananas are", new_tokens=8)
        ids = torch.tensor([answer.prompt])
        with model.text_path() if path == "text" else model.multimodal_path():
            wanted = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert list(answer.tokens) == wanted.tolist()


def test_a_multimodal_model_has_its_trained_projector_in_the_checkpoint(tmp_path):
    base = save_llava(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "adapter", base, "genieblue_skip", FROZEN)
    export_adapter(adapter, tmp_path / "export", to="peft-lora")
    found, model = opened(tmp_path / "export", AutoModelForImageTextToText), load_adapter(adapter)
    ids = torch.tensor([[5, *[3] * 4, 9, 11]])
    images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(input_ids=ids, pixel_values=images).logits
        torch.testing.assert_close(
            found(input_ids=ids, pixel_values=images).logits, wanted, atol=2e-5, rtol=1e-5
        )
        with model.text_path(), found.disable_adapter():
            assert torch.equal(found(ids[:, 5:]).logits, model(ids[:, 5:]).logits)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "export/model/model.safetensors")
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("projector" in name for name in differing)
    assert not any("layers" in name and "vision" not in name for name in differing)


@pytest.mark.parametrize(
    ("recipe", "options", "says"),
    [
        ("genieblue_skip", {}, "A632.*differs from the base"),
        ("lora", {"lora": "merge"}, "A634.*leaves no adapter"),
        ("lora", {"base": "apart"}, "A634.*two complete models"),
        ("lora", {"lora": "svd:0"}, "A634.*not known"),
        ("lora", {"lora": "svd:8", "to": "hf"}, "A610.*svd"),
        ("full_finetune", {}, "A634.*no base"),
        ("cogvlm_skip", {}, "A602"),
    ],
)
def test_what_no_lora_holds_is_refused(tmp_path, recipe, options, says):
    base = save_tiny(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "adapter", base, recipe)
    with pytest.raises(SurgeryError, match=says):
        export_adapter(adapter, tmp_path / "export", **{"to": "peft-lora", **options})
    assert not (tmp_path / "export").exists()


def test_frozen_norms_stay_the_bases(tmp_path):
    model = applied("genieblue_skip", FROZEN)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    copied = {name for name in trained if ".3." in name}
    assert len(copied) == 7
    assert not any("norm" in name or name.endswith("bias") for name in copied)
    assert len({name for name, p in applied().named_parameters() if p.requires_grad}) > len(trained)
    assert verify_adapter(genieblue(tmp_path)).passed


def test_evaluate_measures_what_a_rank_costs(tmp_path):
    adapter = trained_adapter("genieblue_skip", tmp_path, FROZEN)
    text = tmp_path / "text.txt"
    text.write_text("Bananas are yellow and they are round. " * 30)
    found = {}
    for lora in (None, "svd:1"):
        folder = tmp_path / f"export-{lora}"
        export_adapter(adapter, folder, to="peft-lora", lora=lora)
        found[lora] = evaluate_adapter(folder, text=text).perplexity
    wanted = evaluate_adapter(adapter, text=text).perplexity
    assert found[None] == pytest.approx(wanted, rel=1e-3)  # the base is bf16
    assert found["svd:1"]["text"] == wanted["text"] == wanted["base"]
    assert found["svd:1"]["shared"] != pytest.approx(wanted["shared"], rel=1e-2)
