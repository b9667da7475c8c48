"""`--to onnx` of models that see: what the graphs make of pictures is what torch makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import perturbed
from tiny_llava import processor, save_llava
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, save_adapter
from surgery.data.vocabulary import load_processor
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter, prepare_export
from surgery.graphs.image_placement_check import check_image_placement
from surgery.graphs.model_shell import ModelShell
from surgery.paths.switching import text_path
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.runtime.base import Prompt
from surgery.runtime.cpu_engine import OnCpu
from surgery.runtime.graph_loop import open_loop
from surgery.runtime.manifest import Manifest, read_manifest
from surgery.runtime.prompt_encoding import encoded
from surgery.runtime.run import run_export
from surgery.runtime.vision_part import image_part
from surgery.vision.assemble import write_assembled

pytest.importorskip("onnxruntime", reason="the graphs are run by onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "A picture of a thing that one can look at, and then"
STEPS = 20
PIECES = {"prefill": 8, "context": 96}
ONE_BY_ONE = {"prefill": 1, "context": 96}
TILES = ("vision=builtin/tiny-vit", "projector=mlp_downsample", "tiles=3")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two with something on them, of unlike shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    return [drawn(folder / "wide.png", 90, 40), drawn(folder / "high.png", 31, 57)]


def drawn(file: Path, width: int, height: int) -> Path:
    """Bands and a disk, so that no two patches are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    disk = ((x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.05) * 255
    bands = np.stack([255 * x, 127 + 127 * np.sin(9 * y + 4 * x), disk], axis=-1)
    Image.fromarray(bands.astype(np.uint8)).save(file)
    return file


def trained(folder: Path, recipe: str, base: Path, *overrides: str) -> Path:
    """An adapter with noise in all that it trains."""
    words = [f"model={base}", *overrides]
    plan = plan_recipe(load_recipe(recipe, words), weights=True)
    save_adapter(plan, perturbed(apply_plan(plan, load_base(str(base)))), folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """transformers' own class over CLIP, all of its eyes trained; and its export."""
    folder = tmp_path_factory.mktemp("llava")
    adapter = trained(folder / "a", "genieblue_skip", save_llava(folder / "base"), "rank=4")
    export_adapter(adapter, folder / "out", to="onnx", **PIECES)
    return adapter, folder / "out"


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The class that a checkpoint carries over SigLIP, in tiles, its projector trained."""
    folder = tmp_path_factory.mktemp("assembled")
    write_assembled(load_recipe("sighted", list(TILES)), folder / "base")
    narrow = ("rank=4", "train=[copies, adapters, projector]")
    adapter = trained(folder / "a", "genieblue_skip", folder / "base", *narrow)
    export_adapter(adapter, folder / "out", to="onnx", **ONE_BY_ONE)
    return adapter, folder / "out"


@pytest.fixture(params=["llava", "assembled"])
def seeing(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    found: tuple[Path, Path] = request.getfixturevalue(request.param)
    return found


def asked(out: Path, pictures: list[Path]) -> Any:
    """A prompt as the model's processor encodes it."""
    return encoded(load_processor(out / "tokenizer"), Prompt(PROMPT, pictures), "multimodal")


def features_of(out: Path, manifest: Manifest, pixels: Any) -> Any:
    part = image_part(OnCpu(out), manifest.paths["multimodal"], manifest.parts)
    assert part
    return part.features(pixels)


def test_features_are_torchs(seeing: tuple[Path, Path], pictures: list[Path]) -> None:
    adapter, out = seeing
    inputs = asked(out, pictures)
    model: Any = load_adapter(adapter).float().eval()
    with torch.no_grad():
        wanted = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
        with text_path(model):
            before = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    found = features_of(out, read_manifest(out), inputs["pixel_values"])
    assert len(found.rows) == int((inputs["input_ids"] == found.token).sum())
    np.testing.assert_allclose(found.rows, wanted.reshape(found.rows.shape).numpy(), atol=1e-4)
    assert (wanted - before).abs().max() > 0.01, "training moved nothing"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_run_answers_as_torch_does(
    count: int, seeing: tuple[Path, Path], pictures: list[Path]
) -> None:
    adapter, out = seeing
    inputs = asked(out, pictures[:count])
    model: Any = load_adapter(adapter).float().eval()
    said = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS, pad_token_id=0)[0]
    answer = run_export(out, "multimodal", PROMPT, images=pictures[:count], new_tokens=STEPS)
    assert [*answer.prompt, *answer.tokens] == said.tolist()
    if count:
        blind = run_export(out, "multimodal", PROMPT, new_tokens=STEPS)
        assert blind.tokens != answer.tokens, "it doesn't look at the picture"


def test_many_tokens_are_torchs(seeing: tuple[Path, Path], pictures: list[Path]) -> None:
    """By hand, without a cache and without an end."""
    adapter, out = seeing
    inputs, manifest = asked(out, pictures), read_manifest(out)
    ids = known = inputs["input_ids"]
    model: Any = load_adapter(adapter).float().eval()
    with torch.no_grad():
        for _ in range(STEPS):
            logits = model(input_ids=known, pixel_values=inputs["pixel_values"]).logits
            known = torch.cat([known, logits[:, -1:].argmax(-1)], dim=1)
    features = features_of(out, manifest, inputs["pixel_values"])
    loop = open_loop(out, manifest, "multimodal", OnCpu(out))
    made = loop.generate(ids[0].tolist(), STEPS, (), features)
    assert made == known[0, ids.shape[1] :].tolist()


def test_text_is_the_language_models(seeing: tuple[Path, Path], pictures: list[Path]) -> None:
    adapter, out = seeing
    base: Any = load_base(str(adapter.parent / "base")).float().eval()
    answer = run_export(out, "text", PROMPT, new_tokens=STEPS)
    ids = torch.tensor([answer.prompt])
    wanted = base.generate(input_ids=ids, do_sample=False, max_new_tokens=STEPS, pad_token_id=0)
    assert [*answer.prompt, *answer.tokens] == wanted[0].tolist()
    assert answer.tokens != run_export(out, "multimodal", PROMPT, new_tokens=STEPS).tokens
    with pytest.raises(SurgeryError, match="R132"):
        run_export(out, "text", PROMPT, images=pictures, new_tokens=1)


def test_the_manifest_tells_what_an_image_takes(seeing: tuple[Path, Path]) -> None:
    adapter, out = seeing
    manifest = read_manifest(out)
    assert manifest.paths["multimodal"][:2] == ("tokenizer", "vision")
    assert "vision" not in manifest.paths["text"]
    graph = manifest.parts["vision"].files[-1].graph
    assert graph
    config = AutoConfig.from_pretrained(adapter.parent / "base", trust_remote_code=True)
    assert (graph.phase, graph.image_token) == ("image", config.image_token_id)
    side = config.vision_config.image_size
    assert [value.shape for value in graph.inputs] == [(1, 3, side, side)]
    width = config.text_config.hidden_size
    assert [value.shape for value in graph.outputs] == [(1, graph.tokens, width)]


def llava_with(folder: Path, family: str, **text: Any) -> Path:
    """A Llava of two blocks around another decoder."""
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**narrow, num_hidden_layers=2, image_size=28, patch_size=14),
        text_config=AutoConfig.for_model(family, vocab_size=2048, **text),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def test_a_decoder_that_scales_its_embeddings_scales_features(
    tmp_path: Path, pictures: list[Path]
) -> None:
    """Granite multiplies what it is given by 3, and a picture with it; here only eyes train."""
    own = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    own |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "embedding_multiplier": 3.0}
    base = llava_with(tmp_path / "base", "granite", **own)
    adapter = trained(tmp_path / "a", "sighted", base, "vision=null")
    manifest = export_adapter(adapter, tmp_path / "out", to="onnx", **ONE_BY_ONE)
    assert [n for n in manifest.paths["multimodal"] if n != "vision"] == [*manifest.paths["text"]]
    inputs = asked(tmp_path / "out", pictures[:1])
    model: Any = load_adapter(adapter).float().eval()
    with torch.no_grad():
        wanted = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    found = features_of(tmp_path / "out", manifest, inputs["pixel_values"])
    np.testing.assert_allclose(found.rows, 3 * wanted.numpy(), atol=1e-4)
    said = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS, pad_token_id=0)[0]
    answer = run_export(
        tmp_path / "out", "multimodal", PROMPT, images=pictures[:1], new_tokens=STEPS
    )
    assert [*answer.prompt, *answer.tokens] == said.tolist()


def refused(folder: Path, base: Path) -> str:
    adapter = trained(folder, "sighted", base, "vision=null")
    with pytest.raises(SurgeryError) as caught:
        prepare_export(adapter, to="onnx", **ONE_BY_ONE)
    assert [found.code for found in caught.value.diagnostics] == ["A612"]
    return str(caught.value)


def test_eyes_that_are_no_graph_of_a_tile_are_refused(tmp_path: Path) -> None:
    base = save_llava(tmp_path / "base", blocks=2)
    file = base / "processor_config.json"
    known = json.loads(file.read_text())
    images = {**known["image_processor"], "do_center_crop": False, "size": {"shortest_edge": 28}}
    file.write_text(json.dumps({**known, "image_processor": images}))
    assert "another size" in refused(tmp_path / "sizes", base)
    file.write_text(json.dumps({**known, "patch_size": 7}))
    assert "do not match" in refused(tmp_path / "places", base)
    file.unlink()
    assert "A612" in refused(tmp_path / "none", base)


def test_a_picture_that_hangs_on_its_place_is_refused(tmp_path: Path) -> None:
    """XGLM adds its sine positions to whatever it is given."""
    own = {"d_model": 32, "ffn_dim": 64, "attention_heads": 4, "max_position_embeddings": 64}
    base = llava_with(tmp_path / "base", "xglm", num_layers=2, **own)
    assert "changes `hidden`" in refused(tmp_path / "a", base)


def test_a_prompt_that_an_image_changes_is_told(tmp_path: Path) -> None:
    """PaliGemma counts places from 1, which Gemma alone doesn't."""
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    narrow |= {"num_hidden_layers": 2}
    vision = {**narrow, "image_size": 28, "patch_size": 14, "projection_dim": 32}
    text = {**narrow, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 128}
    config = PaliGemmaConfig(
        vision_config={**vision, "model_type": "siglip_vision_model"},
        text_config={**text, "model_type": "gemma"},
        image_token_index=3,
        projection_dim=32,
    )
    PaliGemmaForConditionalGeneration(config).save_pretrained(tmp_path)
    whole = ModelShell(plan_recipe(load_recipe("sighted", [f"model={tmp_path}", "vision=null"])))
    prompt = {"input_ids": torch.tensor([[1, 3, 3, 3, 3, 20, 21]])}
    with pytest.raises(ValueError, match="changes `cos`"):
        check_image_placement(whole, {**prompt, "pixel_values": torch.zeros(1, 3, 28, 28)}, 3)
