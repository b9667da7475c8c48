"""Every way in which a model can't be had: its code, exit 3, one sentence, nothing half-written."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from surgery import cli as commands
from surgery.diagnostics.diagnostic import (
    EXIT_DONE,
    EXIT_ENVIRONMENT,
    EXIT_USAGE,
    Diagnostic,
    SurgeryError,
)
from surgery.model.reader import read_anatomy
from surgery.model.source import builtin_names, find_model
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["surgery", *words])
    try:
        commands.main()
    except SystemExit as end:
        return int(end.code or EXIT_DONE)
    return EXIT_DONE


def edit_config(folder: Path, **changed: object) -> None:
    file = folder / "config.json"
    content = {**json.loads(file.read_text()), **changed}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_weights(folder: Path, name: str, change: Callable) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = change(tensors.pop(name))
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


def second_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def write_config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


BROKEN = {
    "no config": ("M101", remove("config.json")),
    "config cut short": ("M104", write_config('{"model_type": ')),
    "config is a list": ("M104", write_config("[1]")),
    "config names no type": ("M104", lambda f: edit_config(f, model_type=None)),
    "unknown type": ("M104", lambda f: edit_config(f, model_type="nonesuch")),
    "impossible config": ("M104", lambda f: edit_config(f, num_attention_heads=0)),
    "remote code": ("M105", lambda f: edit_config(f, auto_map={"AutoConfig": "a.B"})),
    "shape only": ("M102", remove("model.safetensors")),
    "pickle only": ("M202", rename("model.safetensors", "pytorch_model.bin")),
    "file cut short": ("M204", lambda f: cut_short(f / "model.safetensors")),
    "git-lfs pointer": (
        "M206",
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
    ),
    "half-downloaded": (
        "M201",
        rename("model.safetensors", "model.safetensors.incomplete"),
    ),
    "int8 weights": ("M109", lambda f: edit_weights(f, Q_PROJ, lambda t: t.to(torch.int8))),
    "no such tensor": ("M107", lambda f: edit_weights(f, Q_PROJ, lambda t: None)),
    "other width": ("M108", lambda f: edit_config(f, intermediate_size=96)),
    "more blocks": ("M107", lambda f: edit_config(f, num_hidden_layers=6, layer_types=None)),
}
BROKEN_SHARDS = {
    "shard cut short": ("M204", lambda f: cut_short(second_shard(f))),
    "shard missing": ("M203", lambda f: second_shard(f).unlink()),
    "index is no JSON": ("M208", lambda f: index_of(f).write_text("{")),
    "no index": ("M201", lambda f: index_of(f).unlink()),
}
ABSENT = {
    "no folder": ("./nowhere", "M101"),
    "no folder, absolute": ("/no/where/at/all", "M101"),
    "no builtin": ("builtin/tiny-quen2", "M101"),
    "builtin outside its folder": ("builtin/../builtin/tiny-qwen2", "M101"),
    "hub offline": ("Qwen/Qwen2.5-3B", "M103"),
    "not a hub id": ("some words here", "M101"),
}


def index_of(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, here: Path
) -> tuple[str, str]:
    """Apply to a model that can't be had; return the code and the sentence."""
    capsys.readouterr()
    assert run(monkeypatch, "apply", "lora", f'model="{model}"') == EXIT_ENVIRONMENT
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if "error[" in line]
    assert output.out == ""
    assert len(errors) == 1
    assert "Traceback" not in output.err
    assert "  fix: " in output.err
    assert list(here.iterdir()) == []
    _, _, rest = errors[0].partition("error[")
    code, _, sentence = rest.partition("]: ")
    return code, sentence


@pytest.mark.parametrize("case", BROKEN)
def test_broken_model_is_refused(case, here, monkeypatch, capsys) -> None:
    code, damage = BROKEN[case]
    folder = save_tiny(here.parent / "model")
    damage(folder)
    found, sentence = refused(monkeypatch, capsys, str(folder), here)
    assert found == code
    assert str(folder) in sentence
    assert len(sentence) < 200


@pytest.mark.parametrize("case", BROKEN_SHARDS)
def test_broken_shards_are_refused(case, here, monkeypatch, capsys) -> None:
    code, damage = BROKEN_SHARDS[case]
    folder = save_tiny(here.parent / "model", shards=True)
    damage(folder)
    found, sentence = refused(monkeypatch, capsys, str(folder), here)
    assert found == code
    assert str(folder) in sentence


@pytest.mark.parametrize("case", ABSENT)
def test_absent_model_is_refused(case, here, monkeypatch, capsys) -> None:
    model, code = ABSENT[case]
    found, sentence = refused(monkeypatch, capsys, model, here)
    assert found == code
    assert model in sentence


def test_nearest_builtin_is_suggested() -> None:
    with pytest.raises(SurgeryError) as caught:
        find_model("builtin/tiny-quen2")
    assert "did you mean `builtin/tiny-qwen2`?" in caught.value.diagnostics[0].fix


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The hub's client asks a port where nobody listens, and nothing is cached; what it asks."""
    from huggingface_hub import constants, get_session

    session, asked = get_session(), []
    send = session.send

    def noted(request: Any, **how: Any) -> Any:
        asked.append(str(request.url))
        return send(request, **how)

    monkeypatch.setattr(session, "send", noted)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return asked


def refusal(source: str, **how: bool) -> Diagnostic:
    """What `find_model` says."""
    with pytest.raises(SurgeryError) as caught:
        find_model(source, **how)
    return caught.value.diagnostics[0]


@pytest.mark.parametrize("weights", [False, True])
def test_unreachable_hub_is_asked_for_no_file_and_the_built_in_model_is_suggested(
    weights, unreachable, capsys
) -> None:
    diagnostic = refusal("Qwen/Qwen2.5-3B", weights=weights)
    assert not [url for url in unreachable if "Qwen" in url]  # else six times over half a minute
    assert diagnostic.code == "M103"
    assert "http://127.0.0.1:9 doesn't answer" in diagnostic.why
    assert diagnostic.fix.startswith("`builtin/qwen2.5-3b` has its shape, without weights; ")
    assert len(f"{diagnostic.what} {diagnostic.why}") < 160
    assert "etry" not in capsys.readouterr().err


TWINS = {
    "google/gemma-3-1b-it": "`builtin/gemma-3-1b` has",
    "tiny-qwen2": "`builtin/tiny-qwen2` is built in",
    "google/siglip-so400m-patch14-384": "`builtin/siglip-so400m-patch14-384` has",
    "Qwen/Qwen2.5-32B": "unset HF_HUB_OFFLINE",  # no twin: only the beginning is the same
}


@pytest.mark.parametrize("source", TWINS)
def test_offline_hub_id_names_its_twin(source: str) -> None:
    assert refusal(source).fix.startswith(TWINS[source])


def test_cached_model_is_found_though_the_hub_is_silent(unreachable, tmp_path) -> None:
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("0" * 40)
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    save_tiny(snapshot)
    assert find_model("some/model").folder == snapshot
    assert find_model("some/model", weights=True).has_weights
    (snapshot / "model.safetensors").unlink()
    assert refusal("some/model", weights=True).code == "M103"


MISSPELLED = {
    "models/lama": "did you mean `models/llama`?",
    "./models/lama": "did you mean `models/llama`?",
    "models/Llama-": "did you mean `models/llama`?",
    "models/nothing-near": "built in are ",
    "modls/deep/llama": "did you mean `models/deep/llama`?",
    "models/llama/config.json": "did you mean `models/llama`?",
    "models/deep": "name one inside: `models/deep/llama`",
}


@pytest.mark.parametrize("source", MISSPELLED)
def test_misspelled_folder_is_no_hub_id(source: str, here: Path, monkeypatch) -> None:
    def asked(*args: object, **how: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("surgery.model.source.from_hub", asked)
    for folder in ("models/llama", "models/deep/llama"):
        save_tiny(here / folder)
    diagnostic = refusal(source)
    assert (diagnostic.code, diagnostic.what.count(source)) == ("M101", 1)
    assert diagnostic.fix.startswith(MISSPELLED[source])


def test_misspelled_owner_is_a_hub_id_that_names_the_folder(here: Path) -> None:
    save_tiny(here / "models" / "llama")
    diagnostic = refusal("modles/llama")
    assert diagnostic.code == "M103"
    assert diagnostic.fix.startswith("did you mean `models/llama`?")


def test_file_is_no_model(here) -> None:
    file = here / "weights.bin"
    file.touch()
    with pytest.raises(SurgeryError) as caught:
        find_model("weights.bin")
    assert caught.value.diagnostics[0].code == "M101"


def test_all_broken_shards_are_reported_together(here, monkeypatch, capsys) -> None:
    folder = save_tiny(here.parent / "model", shards=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[0].unlink()
    cut_short(shards[1])
    assert run(monkeypatch, "plan", "lora", f"model={folder}") == EXIT_ENVIRONMENT
    output = capsys.readouterr().err
    assert "error[M203]" in output
    assert "error[M204]" in output


def test_shape_without_weights_is_planned(here, monkeypatch, capsys) -> None:
    folder = save_tiny(here.parent / "model")
    (folder / "model.safetensors").unlink()
    assert run(monkeypatch, "plan", "lora", f"model={folder}") == EXIT_DONE
    assert "LoRA on 28 matrices" in capsys.readouterr().out


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_model_has_an_anatomy(name: str) -> None:
    anatomy = read_anatomy(name)
    assert anatomy.source == name
    assert anatomy.count >= 12
    assert {"attention", "mlp"} <= anatomy.kinds[0].module_names()


QUANTIZED = {
    "bitsandbytes 4 bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes 8 bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16]},
    "method left out": {"load_in_4bit": True},
}


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("recipe", ["genieblue_skip", "full_finetune"])
def test_quantized_base_is_not_trained_itself(method, recipe, here, monkeypatch, capsys) -> None:
    folder = save_tiny(here.parent / "model")
    edit_config(folder, quantization_config=QUANTIZED[method])
    assert run(monkeypatch, "plan", recipe, f"model={folder}") == EXIT_USAGE
    output = capsys.readouterr().err
    assert "error[P206]" in output
    assert QUANTIZED[method].get("quant_method", "unknown method") in output


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_base_takes_lora(method: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    edit_config(folder, quantization_config=QUANTIZED[method])
    plan = plan_recipe(load_recipe("lora", [f"model={folder}", "rank=4"]))
    assert plan.anatomy.quantization
    assert len(plan.loras()) == 28
    assert {t.dtype for edit in plan.edits for t in edit.tensors} == {"F32"}
