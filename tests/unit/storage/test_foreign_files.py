"""Files from elsewhere: code, devices, wrong configs, paths that lead out, large pictures."""

import contextlib
import json
import os
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from surgery.data.base import RecordLocation
from surgery.data.file_reader import DataFile
from surgery.data.images import open_image, open_images
from surgery.data.vocabulary import load_processor
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.evaluation.evaluate import evaluate_adapter
from surgery.model.reader import read_anatomy
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.recipe.training_schema import Source
from surgery.storage.escape import escapes
from surgery.training.train import train_recipe
from tests.tiny import save_tiny, shallow, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def codes(function, *args, **kwargs):
    with pytest.raises(SurgeryError) as caught:
        function(*args, **kwargs)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


def edit(file: Path, **changed) -> None:
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **changed}))


def test_what_one_run_was_allowed_the_next_is_asked_again(tmp_path):
    base = save_tiny(tmp_path / "base")
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "a.B"})
    code = "from transformers import Qwen2ForCausalLM\n\nclass B(Qwen2ForCausalLM):\n    pass\n"
    (base / "a.py").write_text(code)
    read_anatomy(str(base), trust_remote_code=True)
    assert codes(read_anatomy, str(base)) == ["M105"]
    assert codes(plan_recipe, load_recipe("lora", [f"model={base}"])) == ["M105"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json"])
def test_a_tokenizer_that_is_code_of_the_folder_is_refused(tmp_path, name):
    base = shallow(tmp_path / "base")
    (base / "tokenizer.json").unlink()
    (base / name).write_text(
        json.dumps(
            {
                "auto_map": {"AutoTokenizer": ["a.B", None], "AutoProcessor": "a.B"},
                "tokenizer_class": "Made",
                "processor_class": "Made",
            }
        )
    )
    assert codes(load_processor, base) == ["M105"]


def test_a_broken_tokenizer_is_an_error(tmp_path):
    base = shallow(tmp_path / "base")
    (base / "tokenizer.json").write_text("{")
    assert codes(load_processor, base) == ["M111"]


@pytest.mark.parametrize(
    "content", ["null", "[]", "5", '"x"', "{", "[" * 50_000, '{"model_type": null}']
)
def test_a_config_that_is_no_object_or_no_model_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert codes(read_anatomy, str(tmp_path)) == ["M104"]


@pytest.mark.parametrize("value", [1.5, "x", [], True, {"model_type": 3}, None])
@pytest.mark.parametrize("key", ["text_config", "model_type", "vocab_size", "layer_types"])
def test_a_config_with_a_wrong_value_is_refused_or_reads(tmp_path, key, value):
    base = save_tiny(tmp_path / "base")
    edit(base / "config.json", **{key: value})
    with contextlib.suppress(SurgeryError):
        read_anatomy(str(base))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    base = save_tiny(tmp_path / "base")
    (base / name).unlink()
    os.mkfifo(base / name)
    assert set(codes(read_anatomy, str(base))) <= {"M101", "M104", "M207"}


@pytest.mark.parametrize(
    ("name", "by_name", "by_links"),
    [
        ("in.txt", False, False),
        ("./sub/in.txt", False, False),
        ("not there", False, False),
        ("", False, False),
        ("...", False, False),
        ("..in", False, False),
        ("SUB/in.txt", False, False),
        ("a\0b", False, False),
        ("n" * 300, False, False),
        ("..", True, True),
        ("sub/../in.txt", True, True),
        ("sub/../../own/in.txt", True, True),
        ("../own/in.txt", True, True),
        ("../OWN/in.txt", True, True),
        ("/etc/hostname", True, True),
        ("//host/share", True, True),
        ("C:\\in.txt", True, True),
        ("c:in.txt", True, True),
        ("..\\in.txt", True, True),
        ("inner", False, False),
        ("to nothing", False, False),
        ("outer", False, True),
        ("away/out.txt", False, True),
    ],
)
def test_what_escapes_a_folder(tmp_path, name, by_name, by_links):
    own = tmp_path / "own"
    (own / "sub").mkdir(parents=True)
    for file in (own / "in.txt", own / "sub" / "in.txt", tmp_path / "out.txt"):
        file.write_text("")
    (own / "inner").symlink_to("sub/in.txt")
    (own / "outer").symlink_to(tmp_path / "out.txt")
    (own / "away").symlink_to(tmp_path)
    (own / "to nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(own)
    assert escapes(name) is by_name
    assert escapes(name, own) is escapes(name, tmp_path / "link") is by_links


def talk(folder: Path, image: str) -> Path:
    row = {"image": image, "conversations": [{"from": "human", "value": "What?"}]}
    row["conversations"].append({"from": "gpt", "value": "A cat."})
    (folder / "talk.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "talk.jsonl"


@pytest.fixture
def pictures(tmp_path):
    """A folder `data`, and a picture beside it and one in it."""
    (tmp_path / "data").mkdir()
    for file in (tmp_path / "out.png", tmp_path / "data" / "in.png"):
        Image.new("RGB", (8, 8)).save(file)
    return tmp_path


def test_an_image_outside_of_the_datas_folder_is_refused(pictures):
    for name in ("../out.png", str(pictures / "out.png"), "x/../../out.png", "/etc/hostname"):
        file = talk(pictures / "data", name)
        assert codes(DataFile, Source(file=str(file))) == ["D105"]


def test_an_image_inside_is_found_and_images_widens_the_folder(pictures):
    inside = str(pictures / "data" / "in.png")
    for name, images in (
        ("in.png", ""),
        (inside, ""),
        ("out.png", str(pictures)),
        (str(pictures / "out.png"), "/"),
    ):
        file = talk(pictures / "data", name)
        assert DataFile(Source(file=str(file), images=images)).has_images


def bomb(file: Path, side: int) -> Path:
    """A PNG of `side` x `side` white pixels, a bit each, that takes a few kilobytes."""

    def chunk(kind, content):
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = side.to_bytes(4, "big")
    rows = zlib.compress((b"\0" + b"\xff" * (-(-side // 8))) * side, 9)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + size + b"\1\0\0\0\0")
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    return file


def test_a_small_file_of_many_pixels_is_not_decoded(tmp_path):
    file = bomb(tmp_path / "a.png", 12_000)
    assert file.stat().st_size < 100_000
    assert codes(open_images, [file], RecordLocation(tmp_path / "t.jsonl", 1)) == ["D106"]
    assert open_image(bomb(tmp_path / "b.png", 64)).size == (64, 64)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16"])
def test_an_image_of_any_mode_is_opened_in_rgb(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").mode == "RGB"


def test_a_tokenizer_of_more_ids_than_rows_is_refused_before_it_ends_in_an_index_error(tmp_path):
    from surgery.adapter.folder import write_adapter

    base = shallow(tmp_path / "base")
    small = tiny_model(vocab_size=64)
    small.save_pretrained(base)
    (tmp_path / "talk.txt").write_text("Bananas are yellow and they are round. " * 20)
    words = [f"model={base}", f"data={tmp_path / 'talk.txt'}", "steps=1", "batch=1", "length=32"]
    recipe = load_recipe("lora", words)
    plan = plan_recipe(recipe, weights=True)
    assert "M112" in [note.code for note in plan.notes]
    assert codes(train_recipe, recipe, tmp_path / "out") == ["M112"]
    write_adapter(plan, tmp_path / "a")
    assert codes(evaluate_adapter, tmp_path / "a", text=tmp_path / "talk.txt") == ["M112"]
    assert torch.is_tensor(small.lm_head.weight)


@pytest.mark.parametrize(
    "entry", ["../x/p", "a/../../x/p", "{../x: p}", "/../x/p", "{optional ../x: p}"]
)
def test_a_recipe_reads_no_parent_outside_of_its_folder(tmp_path, entry):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "p.yaml").write_text("password-of-somebody: [\n")
    (tmp_path / "mine").mkdir()
    recipe = tmp_path / "mine" / "r.yaml"
    recipe.write_text(f"defaults: [{entry}, _self_]\n")
    with pytest.raises(SurgeryError) as caught:
        load_recipe(recipe)
    assert caught.value.diagnostics[0].code == "R136"
    assert "password" not in str(caught.value)


def test_neither_through_a_link(tmp_path):
    (tmp_path / "p.yaml").write_text("password-of-somebody: [\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "p.yaml").symlink_to(tmp_path / "p.yaml")
    recipe = tmp_path / "mine" / "r.yaml"
    recipe.write_text("defaults: [p, _self_]\n")
    with pytest.raises(SurgeryError) as caught:
        load_recipe(recipe)
    assert caught.value.diagnostics[0].code == "R136"
    assert "password" not in str(caught.value)


def test_a_parent_in_a_folder_below_is_found(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "p.yaml").write_text("# @package _global_\ndefaults: [_self_]\nseed: 7\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("defaults: [base, below/p, _self_]\ntrain: [decoder]\n")
    assert load_recipe(recipe).seed == 7


@pytest.mark.parametrize("name", ["r.yaml", "p.yaml"])
def test_a_recipe_or_a_parent_that_is_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "r.yaml").write_text("defaults: [p, _self_]\n")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert codes(load_recipe, tmp_path / "r.yaml")
