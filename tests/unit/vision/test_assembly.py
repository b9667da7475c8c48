"""An assembled model is its decoder, its tower and its projector, and nothing else.

Compared with: the decoder alone; the tower and a projector written out with loops; the
paper's parameter counts; the files on disk, byte for byte.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.shrink import tiny_config as shrunken
from tiny import computed, is_rounding, save_tiny, tiny_config
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from surgery.adapter.folder import write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.loading import load_base
from surgery.model.meta_device import auto_class
from surgery.model.reader import read_anatomy
from surgery.model.remote_models.llava_projected import Downsample
from surgery.model.source import find_model
from surgery.plan.planner import make_plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.verification.runner import verify_adapter
from surgery.vision.assemble import assemble_config, prepare_assembly, write_assembled
from surgery.vision.image_token import take_image_token
from surgery.vision.projector import known_projectors

SIGLIP = "builtin/siglip-so400m-patch14-384"
DECODER = find_model("builtin/tiny-qwen2").folder
TOWER = find_model("builtin/tiny-vit").folder
WORDS = sorted(known_projectors())
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}


def recipe_of(*overrides, name="sighted"):
    return load_recipe(name, list(overrides))


def assembled(folder, *overrides):
    write_assembled(recipe_of(*overrides), folder)
    return folder


@pytest.fixture(scope="module", params=WORDS)
def folder(request, tmp_path_factory):
    """The built-in decoder and tower with each projector."""
    made = tmp_path_factory.mktemp("assembled") / request.param
    return assembled(made, f"projector={request.param}", "tiles=4")


@pytest.fixture(scope="module")
def model(folder):
    return load_base(str(folder)).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def picture(height, width, seed=0):
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def odd_tower(folder, pixels=24, kind=SiglipVisionModel, config=SiglipVisionConfig, **how):
    torch.manual_seed(0)
    kind(config(image_size=pixels, **SMALL)).to(**how).save_pretrained(folder)
    return folder


# The paper's counts


@pytest.mark.parametrize(
    ("decoder", "recipes", "trainable"),
    [
        ("qwen2.5-3b", ["full_finetune"], 3_527_809_088),
        ("qwen2.5-3b", ["lora"], 456_837_184),
        ("qwen2.5-3b", ["cogvlm_pre", "cogvlm_post", "cogvlm_skip"], 1_146_751_552),
        ("qwen2.5-3b", ["genieblue_pre", "genieblue_post", "genieblue_skip"], 1_146_788_416),
        ("bluelm-3b", ["full_finetune"], 3_161_257_536),
        ("bluelm-3b", ["lora"], 458_058_816),
        ("bluelm-3b", ["cogvlm_pre", "cogvlm_post", "cogvlm_skip"], 1_005_694_016),
        ("bluelm-3b", ["genieblue_pre", "genieblue_post", "genieblue_skip"], 1_005_734_976),
    ],
)
def test_recipes_train_what_the_paper_prints(decoder, recipes, trainable):
    for recipe in recipes:
        plan = plan_recipe(recipe_of(f"model=builtin/{decoder}", f"vision={SIGLIP}", name=recipe))
        assert plan.trainable == trainable
        assert plan.base == plan.total - plan.added


def test_the_pooling_head_and_the_projector_are_counted():
    recipe = recipe_of("model=builtin/qwen2.5-3b", f"vision={SIGLIP}")
    anatomy = read_anatomy(assemble_config(recipe))
    counted = {p: sum(anatomy.sizes[n] for n in anatomy.names_in(p)) for p in anatomy.parts}
    assert counted["vision"] == 428_225_600
    assert counted["projector"] == 9_216 + 4608 * 2048 + 2048 + 2048 * 2048 + 2048 == 13_644_800
    assert anatomy.parameters == 3_085_938_688 + counted["vision"] + counted["projector"]
    assert (
        json.loads((assemble_config(recipe).folder / "config.json").read_text())["image_seq_length"]
        == 196
    )


# The decoder


def test_text_is_the_decoders(model, processor):
    base = AutoModelForCausalLM.from_pretrained(DECODER, dtype="auto").eval()
    batch = processor(text=["The statement", "A longer line of text"], return_tensors="pt")
    assert is_rounding(computed(model, **batch), computed(base, **batch))
    how = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(**batch, **how), base.generate(**batch, **how))


def test_every_tensor_on_disk_is_its_origins(folder):
    found = load_file(folder / "model.safetensors")
    decoder, tower = (load_file(f / "model.safetensors") for f in (DECODER, TOWER))
    wanted = {f"model.language_model.{n.removeprefix('model.')}": t for n, t in decoder.items()}
    wanted |= {f"model.vision_tower.{n}": t for n, t in tower.items()}
    made = {n for n in found if n.startswith("model.multi_modal_projector.")}
    assert found.keys() == wanted.keys() | made
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_plan_knows_the_bytes(folder):
    word = json.loads((folder / "assembly.json").read_text())["projector"]
    written = []
    other = folder.parent / "again"
    write_assembled(recipe_of(f"projector={word}"), other, progress=written.append)
    size = (other / "model.safetensors").stat().st_size
    assert sum(written) == size == prepare_assembly(recipe_of(f"projector={word}")).size
    assert (other / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_large_model_is_written_in_shards(tmp_path, monkeypatch):
    complete = load_file(assembled(tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr("surgery.storage.safetensors.shards.SHARD_BYTES", 1_000_000)
    written = []
    write_assembled(recipe_of(), tmp_path / "many", progress=written.append)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 4
    assert sum(written) == sum(file.stat().st_size for file in files)
    found = {name: t for file in files for name, t in load_file(file).items()}
    assert found.keys() == complete.keys()
    opened = load_base(str(tmp_path / "many")).state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in complete.items())


def test_the_seed_starts_the_projector(tmp_path):
    files = [assembled(tmp_path / s, f"seed={s}") / "model.safetensors" for s in "01"]
    first, second = map(load_file, files)
    differ = {name for name in first if not torch.equal(first[name], second[name])}
    path = "model.multi_modal_projector"
    assert differ == {f"{path}.linear_1.weight", f"{path}.linear_2.weight"}
    assert first[f"{path}.layer_norm.weight"].eq(1).all()
    bound = 1 / first[f"{path}.linear_1.weight"].shape[1] ** 0.5
    assert 0.9 * bound < first[f"{path}.linear_1.weight"].abs().max() <= 1.01 * bound


# Images


@pytest.mark.parametrize("side", [1, 2, 3, 4, 27])
def test_downsampling_concatenates_two_by_two(side):
    patches = torch.randn(2, side * side, 3)
    half = (side + 1) // 2
    wanted = torch.zeros(2, half * half, 12)
    for row in range(side):
        for column in range(side):
            token, place = (row // 2) * half + column // 2, 2 * (row % 2) + column % 2
            wanted[:, token, 3 * place : 3 * place + 3] = patches[:, row * side + column]
    assert torch.equal(Downsample()(patches), wanted)


def by_hand(model, word, pixels):
    """Image features written out: the tower's last block, then the projector's layers."""
    p = {
        n.rpartition("projector.")[2]: t for n, t in model.state_dict().items() if "projector" in n
    }
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    if word == "linear":
        return hidden @ p["linear_1.weight"].T + p["linear_1.bias"]
    if word == "mlp_downsample":
        hidden = Downsample()(hidden)
        mean, spread = hidden.mean(-1, keepdim=True), hidden.var(-1, keepdim=True, correction=0)
        hidden = (hidden - mean) / (spread + 1e-5).sqrt()
        hidden = hidden * p["layer_norm.weight"] + p["layer_norm.bias"]
    inner = hidden @ p["linear_1.weight"].T + p["linear_1.bias"]
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    return inner @ p["linear_2.weight"].T + p["linear_2.bias"]


def test_an_image_reaches_the_decoder_through_the_projector(folder, processor):
    model = load_base(str(folder)).float().eval()
    word = json.loads((folder / "assembly.json").read_text())["projector"]
    batch = processor(images=[picture(64, 64)], text=["see <|image|> there"], return_tensors="pt")
    with torch.no_grad():
        features = by_hand(model, word, batch["pixel_values"]).flatten(0, 1)
        embedded = model.get_input_embeddings()(batch["input_ids"])
        at = batch["input_ids"][0] == 3
        assert int(at.sum()) == len(features) > 0
        embedded[0, at] = features
        base = AutoModelForCausalLM.from_pretrained(DECODER, dtype=torch.float32).eval()
        wanted = base(inputs_embeds=embedded).logits
        found = model(**batch).logits
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_an_odd_grid_is_filled_with_zeros(tmp_path):
    tower = odd_tower(tmp_path / "tower")
    model = load_base(str(assembled(tmp_path / "out", f"vision={tower}"))).float().eval()
    pixels = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        found = model.get_image_features(pixels).pooler_output[0]
        wanted = by_hand(model, "mlp_downsample", pixels)[0]
    assert found.shape == (4, 128)
    assert torch.allclose(found, wanted, atol=1e-5)


# Other checkpoints


def test_a_tower_of_another_type_is_rounded(tmp_path):
    tower = odd_tower(tmp_path / "tower", dtype=torch.float32)
    found = load_file(assembled(tmp_path / "out", f"vision={tower}") / "model.safetensors")
    for name, tensor in load_file(tower / "model.safetensors").items():
        assert torch.equal(found[f"model.vision_tower.{name}"], tensor.to(torch.bfloat16))


def test_a_tower_out_of_a_two_tower_model(tmp_path):
    text = {"vocab_size": 32, "max_position_embeddings": 8, **SMALL}
    text.pop("patch_size")
    torch.manual_seed(0)
    both = SiglipModel(SiglipConfig(text_config=text, vision_config={"image_size": 32, **SMALL}))
    both.save_pretrained(tmp_path / "both")
    model = load_base(str(assembled(tmp_path / "out", f"vision={tmp_path / 'both'}")))
    for name, tensor in both.vision_model.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor.to(torch.bfloat16))


def test_a_class_token_is_left_out(tmp_path):
    tower = odd_tower(tmp_path / "tower", 32, CLIPVisionModel, CLIPVisionConfig)
    folder = assembled(tmp_path / "out", f"vision={tower}", "projector=mlp")
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor(images=[picture(32, 32)], text=["<|image|>"], return_tensors="pt")
    assert int((batch["input_ids"] == 3).sum()) == 16
    assert load_base(str(folder))(**batch).logits.shape[1] == batch["input_ids"].shape[1]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_other_decoders_keep_their_logits(family, tmp_path):
    base = save_tiny(tmp_path / "base", family)
    for file in DECODER.glob("tokenizer*"):
        content = file.read_bytes()
        (base / file.name).write_bytes(content)
    folder = assembled(tmp_path / "out", f"model={base}")
    ids = torch.arange(3, 12)[None]
    ids[ids == 3] = 4
    found, wanted = (computed(load_base(str(home)), ids) for home in (folder, base))
    assert is_rounding(found, wanted)


def test_a_sharded_decoder_with_a_head_of_its_own(tmp_path):
    base = save_tiny(tmp_path / "base", "llama", shards=True, tie_word_embeddings=False)
    for file in DECODER.glob("tokenizer*"):
        (base / file.name).write_bytes(file.read_bytes())
    folder = assembled(tmp_path / "out", f"model={base}")
    model = load_base(str(folder))
    assert torch.equal(model.lm_head.weight, load_base(str(base)).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


OPEN = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, trust = sys.argv[1], sys.argv[2] == "True"
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trust, dtype="auto")
batch = AutoProcessor.from_pretrained(folder)(text=["The statement"], return_tensors="pt")
assert not any(name.partition(".")[0] == "surgery" for name in sys.modules)
print(type(model).__name__, model(**batch).logits.double().sum().item())
"""


def test_the_checkpoint_opens_without_surgery(folder, model, processor, tmp_path):
    content = json.loads((folder / "config.json").read_text())
    arguments = [str(folder), str("auto_map" in content)]
    run = [sys.executable, "-c", OPEN, *arguments]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    logits = model(**processor(text=["The statement"], return_tensors="pt")).logits
    name, total = done.stdout.split()
    assert [name] == content["architectures"] == [type(model).__name__]
    # another process may take other kernels, and the decoder is bf16
    assert float(total) == pytest.approx(logits.double().sum().item(), rel=2e-3)
    assert ("auto_map" in content) == (content["model_type"] != "llava")


def test_a_saved_model_opens_again(folder, model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    again = load_base(str(tmp_path / "saved"))
    assert {n: t.sum() for n, t in again.state_dict().items()} == {
        n: t.sum() for n, t in model.state_dict().items()
    }
    carried = [file.name for file in folder.glob("*.py")]
    assert carried == [file.name for file in (tmp_path / "saved").glob("*.py")]


# The processor


def grid_of(height, width, tiles):
    """Tiles as the nearest aspect ratio of all grids gives them; thumbnail included."""
    shapes = [(c, r) for c in range(1, tiles + 1) for r in range(1, tiles + 1) if c * r <= tiles]
    best = min(abs(width / height - c / r) for c, r in shapes)
    counts = {c * r for c, r in shapes if abs(width / height - c / r) == best}
    return {n + (n > 1) for n in counts}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 160), (200, 100), (300, 300)])
def test_images_become_tiles_and_a_thumbnail(height, width, folder, model, processor):
    each = json.loads((folder / "assembly.json").read_text())["tokens_a_tile"]
    image = picture(height, width)
    batch = processor(images=[image], text=["a <|image|> b"], return_tensors="pt")
    tiles = len(batch["pixel_values"])
    assert tiles in grid_of(height, width, 4)
    assert int((batch["input_ids"] == 3).sum()) == tiles * each
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert [n for n in range(1, 6) if f"tile_{n}" in text] == list(range(1, tiles))
    assert model(**batch).logits.shape[1] == batch["input_ids"].shape[1]


def test_without_tiles_an_image_is_one(tmp_path):
    folder = assembled(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder)
    images = [picture(40, 160), picture(32, 32, 1)]
    batch = processor(images=images, text=["a <|image|>", "<|image|> b"], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert (batch["input_ids"] == 3).sum(dim=1).tolist() == [4, 4]
    exact = torch.tensor(np.asarray(images[1])).permute(2, 0, 1) / 255 * 2 - 1
    assert torch.allclose(batch["pixel_values"][1], exact, atol=1e-6)


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_a_chat_template_takes_pictures(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in (f for f in DECODER.iterdir() if f.suffix in (".json", ".safetensors")):
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").write_text(TEMPLATE)
    processor = AutoProcessor.from_pretrained(assembled(tmp_path / "out", f"model={base}"))
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    message = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    found = processor.apply_chat_template(message, tokenize=False)
    assert found == "[user]<|image|>What is it?[assistant]A cat."
    plain = [{"role": "user", "content": "{{ x }}"}]
    assert processor.apply_chat_template(plain, tokenize=False) == "[user]{{ x }}"


# The image token


def tokenizer_of(size, special=()):
    words = {f"w{i}": i for i in range(size - len(special))}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0"))
    )
    made.add_special_tokens({"extra_special_tokens": list(special)})
    return made


@pytest.mark.parametrize(
    ("special", "rows", "token"),
    [
        (["<|vision_start|>", "<|image_pad|>", "<|video_pad|>"], 16, ("<|image_pad|>", 14)),
        (["<|other|>", "<image>"], 16, ("<image>", 15)),
        (["<|reserved_special_token_0|>", "<|image|>"], 16, ("<|image|>", 15)),
        (["<|begin|>", "<|reserved_special_token_7|>"], 16, ("<|reserved_special_token_7|>", 15)),
        (["<unused5>"], 16, ("<unused5>", 15)),
        (["<|begin|>"], 17, ("<image>", 16)),
    ],
)
def test_the_image_token_is_one_to_spare(special, rows, token):
    tokenizer = tokenizer_of(16, special)
    assert take_image_token(tokenizer, rows, "base") == token
    assert tokenizer.encode(f"w1 {token[0]} w2")[1:-1] == [token[1]]
    assert all(word in tokenizer.all_special_tokens for word in special)


def test_without_a_token_to_spare_nothing_is_resized():
    with pytest.raises(SurgeryError) as caught:
        take_image_token(tokenizer_of(16, ["<|begin|>"]), 16, "base")
    assert [d.code for d in caught.value.diagnostics] == ["M124"]


# What doesn't fit


def bare_llama(folder):
    return save_tiny(folder, "llama")


def scaled(folder):
    fields = tiny_config("llama").to_diff_dict()
    fields.pop("model_type")
    config = AutoConfig.for_model("granite", **fields, logits_scaling=8.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def without_embed_tokens(folder):
    return save_tiny(folder, "gpt2")


def wide(folder):
    odd_tower(folder, 32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": [32, 24]}))
    return folder


@pytest.mark.parametrize(
    ("key", "make", "code"),
    [
        ("vision", lambda folder: "builtin/no-such-tower", "M121"),
        ("vision", lambda folder: folder / "nowhere", "M121"),
        ("vision", lambda folder: "builtin/tiny-qwen2", "M122"),
        ("vision", wide, "M122"),
        ("vision", lambda folder: SIGLIP, "M102"),
        ("model", bare_llama, "M124"),
        ("model", scaled, "M125"),
        ("model", without_embed_tokens, "M125"),
        ("model", lambda folder: assembled(folder, "projector=mlp"), "M125"),
    ],
)
def test_what_does_not_fit_is_reported_before_anything_is_written(key, make, code, tmp_path):
    recipe = recipe_of(f"{key}={make(tmp_path / 'made')}")
    with pytest.raises(SurgeryError) as caught:
        write_assembled(recipe, tmp_path / "out")
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.code, diagnostic.key) == (code, key)
    assert diagnostic.span is not None
    assert not (tmp_path / "out").exists()


def test_a_grid_that_is_no_square_is_refused(tmp_path, monkeypatch):
    tower = odd_tower(tmp_path / "tower", 32)
    forward = SiglipVisionModel.forward

    def shorter(self, pixel_values, **how):
        found = forward(self, pixel_values, **how)
        found.hidden_states = tuple(h[:, :-2] for h in found.hidden_states)
        return found

    monkeypatch.setattr(SiglipVisionModel, "forward", shorter)
    with pytest.raises(SurgeryError) as caught:
        assemble_config(recipe_of(f"vision={tower}"))
    assert [d.code for d in caught.value.diagnostics] == ["M123"]


def test_an_incomplete_tower_is_refused(tmp_path):
    tower = odd_tower(tmp_path / "tower", 32)
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(SurgeryError) as caught:
        prepare_assembly(recipe_of(f"vision={tower}"))
    assert [(d.code, d.key) for d in caught.value.diagnostics] == [("M107", "vision")]


def test_a_recipe_without_vision_assembles_nothing():
    with pytest.raises(SurgeryError) as caught:
        prepare_assembly(recipe_of(name="lora"))
    assert [d.code for d in caught.value.diagnostics] == ["P223"]


# Who trains


def plan_on(folder, recipe, *overrides):
    return make_plan(load_recipe(recipe, list(overrides)), read_anatomy(str(folder)))


def test_vision_and_projector_are_copied_with_an_adapter(folder):
    plan = plan_on(folder, "genieblue_skip")
    paths = ["model.vision_tower", "model.multi_modal_projector"]
    assert [edit.path for edit in plan.part_swaps()] == paths
    assert not plan.trains.base
    assert plan.has_text_path
    assert not plan.in_place
    parts = sum(
        plan.anatomy.sizes[n] for p in ("vision", "projector") for n in plan.anatomy.names_in(p)
    )
    assert (
        plan.added
        == plan.trainable
        == parts + sum(plan.by_operation()[name] for name in ("copies", "adapters"))
    )


@pytest.mark.parametrize("model_type", ["llava", "internvl", "qwen2_vl"])
def test_a_model_that_sees_already_is_split_in_the_same_way(model_type, tmp_path):
    config = shrunken(model_type)
    torch.manual_seed(0)
    auto_class(config).from_config(config).save_pretrained(tmp_path / "base")
    recipe = load_recipe("genieblue_skip", [f"model={tmp_path / 'base'}"])
    plan = plan_recipe(recipe, weights=True)
    write_adapter(plan, tmp_path / "out")
    parts = {*plan.anatomy.names_in("vision"), *plan.anatomy.names_in("projector")}
    copied = {tensor.name for edit in plan.part_swaps() for tensor in edit.tensors}
    assert copied == parts
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name for name in parts if f"base_model.model.{name}" in stored} == parts
    assert verify_adapter(tmp_path / "out").passed


def test_a_part_trains_in_place_where_the_decoder_does(folder):
    for recipe in ("full_finetune", "wings"):
        plan = plan_on(folder, recipe)
        assert plan.in_place
        assert not plan.part_swaps()
        assert set(plan.anatomy.names_in("projector")) <= plan.trains.base


def test_only_what_is_named_of_a_copied_part_trains(folder):
    plan = plan_on(folder, "lora", "train=[adapters,'model.vision_tower.encoder.layers.3.*']")
    (copy,) = plan.part_swaps()
    assert plan.trainable_of(copy) == sum(
        size for name, size in plan.anatomy.sizes.items() if ".encoder.layers.3." in name
    )
    assert copy.parameters == 180_800


def test_stages_share_the_copies(folder):
    stages = "stages={align: {train: [projector]}, tune: {train: [copies, vision, projector]}}"
    plan = plan_on(folder, "genieblue_skip", stages)
    align, tune = plan.stages
    assert {part for part, _ in align.selection.added} == {"projector"}
    assert {part for part, _ in tune.selection.added} == {"copies", "vision", "projector"}
    assert len(plan.part_swaps()) == 2
