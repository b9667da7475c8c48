"""`--to qnn` of models that see: eyes in W8A16, and answers to pictures in the emulator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from same_tokens import logits, same_tokens
from tiny import perturbed, shallow
from tiny_llava import color_question, processor, write_images, write_lines

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, save_adapter
from surgery.data.samples.images import draw_image
from surgery.data.samples.texts import CALIBRATION
from surgery.data.vocabulary import load_processor
from surgery.export.calibration import Calibration
from surgery.export.calibration_data import prompts_of
from surgery.export.export import export_adapter
from surgery.model.source import find_model
from surgery.npu.qualcomm.arrays import read_arrays
from surgery.npu.qualcomm.toolchain import why_not
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.runtime.base import Prompt
from surgery.runtime.formats.qnn import OnEmulator, OnReference, open_emulator
from surgery.runtime.graph_loop import open_loop
from surgery.runtime.manifest import Manifest, read_manifest
from surgery.runtime.prompt_chunk import Features
from surgery.runtime.prompt_encoding import encoded
from surgery.runtime.run import run_export
from surgery.runtime.vision_part import image_part
from surgery.vision.assemble import write_assembled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not())
BUILT_IN = find_model("builtin/tiny-qwen2").folder
PROMPT = "A picture of a thing that one can look at, and then"
STEPS = 20
LOUD = 20
"""Features are so much larger than the projector makes them at first: no words are like that."""
TOWER = ("vision=builtin/tiny-vit", "projector=mlp_downsample", "tiles=3")
RECIPE = """\
defaults: [base, _self_]
operations:
  copies: {op: duplicate, blocks: [1]}
  adapters: {op: lora, blocks: rest, modules: [attention, mlp], rank: 4}
train: [copies, adapters, projector]
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An assembled model in tiles with a copy, LoRA and a trained projector; and its export."""
    folder = tmp_path_factory.mktemp("seeing")
    write_assembled(
        load_recipe("sighted", [f"model={shallow(folder / 'decoder')}", *TOWER]), folder / "base"
    )
    (folder / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(str(folder / "r.yaml"), [f"model={folder / 'base'}"])
    plan = plan_recipe(recipe, weights=True)
    model: Any = perturbed(apply_plan(plan, load_base(str(folder / "base"))))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "linear_2" in name and parameter.requires_grad:
                parameter.mul_(LOUD)
    save_adapter(plan, model, folder / "adapter")
    export_adapter(
        folder / "adapter",
        folder / "out",
        to="qnn",
        target="snapdragon",
        base="apart",
        prefill=16,
        context=128,
    )
    return folder / "adapter", folder / "out"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures that nothing was calibrated on."""
    folder = tmp_path_factory.mktemp("shown")
    files = []
    for number, (height, width) in enumerate([(40, 90), (57, 31)]):
        files.append(folder / f"{number}.png")
        Image.fromarray(draw_image(100 + number, height, width)).save(files[-1])
    return files


def asked(out: Path, pictures: list[Path]) -> tuple[list[int], Any]:
    """Ids and pixels as the model's processor makes them."""
    made = encoded(load_processor(out / "tokenizer"), Prompt(PROMPT, pictures), "multimodal")
    return made["input_ids"][0].tolist(), made.get("pixel_values")


def features(manifest: Manifest, pixels: Any, engine: Any) -> Features:
    vision = image_part(engine, manifest.paths["multimodal"], manifest.parts)
    assert vision
    return vision.features(pixels)


def cosine(one: Any, other: Any) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@needs_compiler
def test_eyes_are_compiled_and_see_what_torch_sees(
    exported: tuple[Path, Path], shown: list[Path]
) -> None:
    adapter, out = exported
    manifest = read_manifest(out)
    part = manifest.parts["vision"]
    assert (part.quantisation, part.dtype) == ("w8a16", "I8")
    graph = next(file.graph for file in part.files if file.graph)
    assert graph.cosine.keys() == {"multimodal"}
    assert graph.cosine["multimodal"]["features"] > 0.99
    _, pixels = asked(out, shown)
    assert len(pixels) > len(shown), "a picture is no more than a tile"
    model: Any = load_adapter(adapter).float().eval()
    with torch.no_grad():
        wanted = torch.cat([*model.get_image_features(pixels).pooler_output]).numpy()
    reference = features(manifest, pixels, OnReference(out)).rows
    with open_emulator(manifest) as emulator:
        found = features(manifest, pixels, OnEmulator(out, emulator)).rows
    assert cosine(found, reference) > 0.9999
    for row, right in zip(found, wanted.reshape(found.shape), strict=True):
        assert cosine(row, right) > 0.99


@needs_compiler
def test_answers_in_the_emulator_are_the_references(
    exported: tuple[Path, Path], shown: list[Path]
) -> None:
    _, out = exported
    manifest = read_manifest(out)
    reference = OnReference(out)
    blind, wanted = (said(out, manifest, pictures, reference) for pictures in ([], shown))
    text = said(out, manifest, [], reference, "text")
    assert len(wanted) == STEPS
    assert wanted != blind, "it doesn't look at the pictures"
    assert text != blind, "training moved nothing"
    with open_emulator(manifest) as emulator:
        engine = OnEmulator(out, emulator)
        for pictures, path, words in ((shown, "multimodal", wanted), ([], "text", text)):
            same_tokens(
                *(
                    behind(out, manifest, pictures, each, path, words)
                    for each in (reference, engine)
                )
            )
    answer = run_export(out, "multimodal", PROMPT, images=shown, new_tokens=1)
    assert [*answer.tokens] == wanted[:1]


def said(
    out: Path, manifest: Manifest, pictures: list[Path], engine: Any, path: Any = "multimodal"
) -> list[int]:
    """What an engine answers, without an end."""
    ids, pixels = asked(out, pictures)
    seen = features(manifest, pixels, engine) if pictures else None
    return open_loop(out, manifest, path, engine).generate(ids, STEPS, (), seen)


def behind(
    out: Path, manifest: Manifest, pictures: list[Path], engine: Any, path: Any, words: list[int]
) -> np.ndarray:
    """Logits while these words are said."""
    ids, pixels = asked(out, pictures)
    seen = features(manifest, pixels, engine) if pictures else None
    return logits(open_loop(out, manifest, path, engine), ids, words, seen)


@needs_compiler
def test_a_block_of_its_own_has_room_for_images(exported: tuple[Path, Path]) -> None:
    """With the ranges of words alone the cosine along the multimodal path is 0.90."""
    manifest = read_manifest(exported[1])
    text, seeing = (
        {name for name in manifest.paths[path] if name.startswith(("block", "copy"))}
        for path in ("text", "multimodal")
    )
    assert (text, seeing) == ({"block.0", "block.1"}, {"copy.0", "copy.1"})
    for path, name in (("text", "block.0"), ("multimodal", "copy.0")):
        files = {file.name: file.graph for file in manifest.parts[name].files}
        graph = files["prefill.onnx"]
        assert graph
        assert graph.cosine.keys() == {path}
        assert min(graph.cosine[path].values()) > 0.99


def test_built_in_pictures_are_shown_where_no_record_has_any(tmp_path: Path) -> None:
    llava = processor()
    built_in = prompts_of(llava, None, 64)
    assert [row.has_images for row in built_in] == [False] * len(CALIBRATION) + [True] * 4
    drawn = [row.images["pixel_values"].numpy() for row in built_in if row.has_images]
    assert min(tile.std() for tile in drawn) > 0.2
    assert max(np.corrcoef(drawn[0].ravel(), tile.ravel())[0, 1] for tile in drawn[1:]) < 0.9
    assert not any(row.has_images for row in prompts_of(llava.tokenizer, None, 64))
    write_images(tmp_path)
    mine = write_lines(tmp_path / "mine.jsonl", [color_question("red"), color_question("blue")])
    assert [row.has_images for row in prompts_of(llava, mine, 64)] == [True] * 2
    blind = write_lines(tmp_path / "blind.jsonl", [{"text": "One."}])
    assert [row.has_images for row in prompts_of(llava, blind, 64)] == [False] + [True] * 4


@pytest.mark.parametrize("prefill", [1, 4])
def test_images_go_along_the_multimodal_path_alone(prefill: int, tmp_path: Path) -> None:
    """The places reach into what is read token by token; text has the words."""
    ids = [7, 3, 3, 3, 8, 9, 3, 3, 10, 11, 12, 13, 14]
    rows = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    lengths: Any = {"prefill": prefill, "decode": 1} if prefill > 1 else {"decode": 1}
    parts: Any = {path: ["embeddings"] for path in ("text", "multimodal")}
    calibration = Calibration(tmp_path, parts, {"text": {}, "multimodal": {}})
    calibration.begin([(ids, Features(3, rows))], lengths)
    text, seeing = (
        [read_arrays(file) for file in sorted((tmp_path / path).rglob("*.npz"))] for path in parts
    )
    assert words(text) == [word for word in ids if word != 3]
    assert not any("features" in chunk for chunk in text)
    assert words(seeing) == ids
    np.testing.assert_array_equal(np.concatenate([p["features"] for p in seeing]), rows)
    places = [word for p in seeing for word in p["ids"][0, p["is_image"]]]
    assert places == [3] * len(rows)


def words(found: list[Any]) -> list[int]:
    """The tokens of pieces, without what fills them up."""
    return [int(word) for chunk in found for word in chunk["ids"][0, : chunk["piece"][2]]]
