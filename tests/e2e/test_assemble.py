"""`surgery assemble` as typed, and every kind of recipe on what it writes, with pictures."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import computed
from transformers import AutoProcessor

from surgery.adapter.folder import load_adapter
from surgery.cli import main
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.paths.switching import multimodal_path, text_path

RECIPES = ("genieblue_skip", "lora", "cogvlm_skip", "wings", "full_finetune")


def few(quick: str, *others: str) -> list[Any]:
    """Parameters of which `make test` takes the first alone."""
    return [quick, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


VISION = ("vision=builtin/tiny-vit", "tiles=4")


def surgery(*words: str) -> int:
    """Run the command line in this process and return its exit code."""
    before, sys.argv = sys.argv, ["surgery", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def files_of(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in decoder with the built-in tower."""
    out = tmp_path_factory.mktemp("models") / "sighted"
    assert surgery("assemble", "sighted", "tiles=4", "--out", str(out)) == 0
    return out


@pytest.fixture(scope="module")
def adapter(sighted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GenieBlue-Skip on it."""
    out = tmp_path_factory.mktemp("adapters") / "genieblue"
    assert surgery("apply", "genieblue_skip", f"model={sighted}", "--out", str(out)) == 0
    return out


def test_the_folder_is_a_checkpoint_with_a_processor(sighted: Path) -> None:
    names = {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}
    assert names | {"llava_projected.py", "assembly.json"} <= files_of(sighted).keys()
    text = (sighted / "config.json").read_text() + (sighted / "tokenizer_config.json").read_text()
    assert "/" not in re.sub(r"\w+/\w+\"", "", text)


def test_overwriting_needs_leave_and_a_folder_of_ours(sighted: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert surgery("assemble", "sighted", "--out", str(sighted)) == 3
    assert surgery("assemble", "sighted", "tiles=4", "--out", str(sighted), "--overwrite") == 0
    assert surgery("assemble", "sighted", "--out", str(tmp_path / "other"), "--overwrite") == 3
    assert [f.name for f in (tmp_path / "other").iterdir()] == ["file"]


@pytest.mark.parametrize("recipe", few(*RECIPES))
def test_every_recipe_acts_on_its_decoder_and_is_verified(
    recipe: str, sighted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert surgery("apply", recipe, f"model={sighted}", "--out", str(out)) == 0
    assert surgery("verify", str(out)) == 0


@pytest.mark.parametrize("recipe", few("sighted", "genieblue_skip", "wings", "full_finetune"))
def test_a_recipe_that_names_vision_brings_its_own_base(recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert surgery("apply", recipe, *VISION, "--out", str(out)) == 0
    assert surgery("verify", str(out)) == 0
    sizes = files_of(out)
    stated = json.loads((out / "plan.json").read_text())["bytes"]
    assert stated["written"] == sum(sizes.values())
    assert stated["adapter"] == sum(n for f, n in sizes.items() if f.endswith(".safetensors"))
    (tmp_path / "moved").parent.mkdir(exist_ok=True)
    out.rename(tmp_path / "moved")
    load_adapter(tmp_path / "moved")


def test_a_saved_plan_of_it_can_be_applied(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert surgery("plan", "sighted", "--out", str(plan)) == 0
    content = json.loads(plan.read_text())
    assert content["model"]["source"] == "builtin/tiny-qwen2 + builtin/tiny-vit"
    assert [edit["block"] for edit in content["edits"]] == [None]
    assert surgery("apply", str(plan), "--out", str(out)) == 0
    stated = json.loads((out / "plan.json").read_text())["bytes"]["adapter"]
    assert stated == content["bytes"]["adapter"]


Pictures = list[list["np.ndarray"]]


def pictures_of(sizes: list[list[tuple[int, int]]]) -> Pictures:
    """Noise of the given sizes, for each row."""
    noise = np.random.default_rng(0)
    return [[noise.integers(0, 256, (*s, 3), dtype=np.uint8) for s in row] for row in sizes]


def batch_of(folder: Path, pictures: Pictures) -> dict[str, torch.Tensor]:
    """One row for each list of pictures, some without any."""
    text = ["look " + "<|image|> " * len(row) + "and say" for row in pictures]
    seen = [picture for row in pictures for picture in row] or None
    found = AutoProcessor.from_pretrained(folder)(images=seen, text=text, return_tensors="pt")
    return dict(found)


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """All that trains changed at random, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.add_(noise.to(parameter.dtype))
    return model.eval()


def test_rows_of_a_batch_have_any_number_of_pictures(adapter: Path, sighted: Path) -> None:
    model = perturbed(load_adapter(adapter, trainable=True)).float()
    sizes = [[], [(32, 32)], [(64, 64), (32, 128)], [], [(32, 32), (32, 32)]]
    paths = ["text", "multimodal", "text", "multimodal", "text"]
    pictures = pictures_of(sizes)
    batch = batch_of(sighted, pictures)
    with torch.no_grad():
        found = model(**batch, paths=paths)
    assert "image_hidden_states" not in found
    for row, path in enumerate(paths):
        real = batch["attention_mask"][row].bool()
        each = {}
        for name, context in (("text", text_path), ("multimodal", multimodal_path)):
            with torch.no_grad(), context(model):
                each[name] = model(**batch_of(sighted, pictures[row : row + 1])).logits[0]
        logits = found.logits[row][real]
        near = {name: (logits - alone).abs().max() for name, alone in each.items()}
        assert near.pop(path) < 1e-3 * logits.abs().max() < next(iter(near.values()))


def test_pictures_that_fit_no_row_are_refused(adapter: Path, sighted: Path) -> None:
    model = load_adapter(adapter)
    batch = batch_of(sighted, pictures_of([[(32, 32)], [(32, 32)]]))
    batch["pixel_values"] = batch["pixel_values"].repeat(3, 1, 1, 1)
    with pytest.raises(SurgeryError) as caught:
        model(**batch, paths=["text", "multimodal"])
    assert caught.value.diagnostics[0].code == "A407"


def test_the_text_path_sees_with_the_bases_own_eyes(adapter: Path, sighted: Path) -> None:
    from surgery.model.loading import load_base

    model, base = perturbed(load_adapter(adapter, trainable=True)), load_base(str(sighted)).eval()
    batch = batch_of(sighted, pictures_of([[(64, 64)], []]))
    wanted = computed(base, **batch)
    with text_path(model):
        assert torch.equal(computed(model, **batch), wanted)
    assert not torch.equal(computed(model, **batch), wanted)


def test_its_card_opens_it_in_plain_peft(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert surgery("apply", "genieblue_skip", *VISION, "--out", str(out)) == 0
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    assert "surgery" not in code
    exec(code.replace("FOLDER", str(out)), {})
