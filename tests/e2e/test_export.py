"""`surgery export` and `surgery run` as typed, on adapters that were really trained."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import perturbed
from tiny_llava import color_question, write_images, write_lines
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, save_adapter
from surgery.cli import main
from surgery.model.source import find_model
from surgery.paths.switching import text_path
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.runtime.base import Prompt
from surgery.runtime.manifest import read_manifest
from surgery.runtime.run import run_export
from surgery.storage.safetensors.checkpoint import read_checkpoint

BASE = find_model("builtin/tiny-qwen2").folder
PROMPT = "A list is"
FEW = ("batch=4", "length=64", "steps=4", "rate=3e-3", "log_every=4", "save_every=4")
NEW = 12


@pytest.fixture
def surgery(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run the command line in this process; return its exit code and what it printed."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["surgery", *map(str, words)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            told = capsys.readouterr()
            return int(end.code or 0), told.out, told.err
        raise AssertionError("it always ends in SystemExit")

    return run


def train(recipe: str, out: Path, data: Path, *words: str) -> Path:
    """Train in a process of its own, as a user does."""
    command = [sys.executable, "-m", "surgery", "train", recipe, f"data={data}", *FEW, *words]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=out.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": "Bananas are yellow and they are round. " * 3} for _ in range(8)]
    return write_lines(tmp_path_factory.mktemp("data") / "talk.jsonl", rows)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in fp32."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    load_base(str(BASE)).float().save_pretrained(folder)
    for file in BASE.glob("token*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(wide: Path, talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "genieblue"
    return train("genieblue_skip", folder, talk, f"model={wide}")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter that assembles its own base, vision and projector trained; and a picture."""
    folder = tmp_path_factory.mktemp("seeing")
    write_images(folder)
    data = write_lines(folder / "data.jsonl", [color_question(c) for c in ("red", "blue")] * 4)
    words = ("vision=builtin/tiny-vit", "projector=mlp")
    return train("genieblue_skip", folder / "adapter", data, *words), folder / "red.png"


def greedy(model: Any, folder: Path, prompt: str = PROMPT) -> list[int]:
    """By transformers alone."""
    inputs = AutoTokenizer.from_pretrained(folder)([prompt], return_tensors="pt")
    said = model.eval().generate(**inputs, do_sample=False, max_new_tokens=NEW)
    tokens: list[int] = said[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def ran(surgery: Any, folder: Path, path: str, *words: object) -> list[int]:
    code, told, _ = surgery(
        "run", folder, "--path", path, "--prompt", PROMPT, "--max-new-tokens", NEW,
        "--format", "json", *words,
    )  # fmt: skip
    assert code == 0
    tokens: list[int] = json.loads(told)["tokens"]
    return tokens


def bytes_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every tensor of a checkpoint, to the bit."""
    for name, tensor in sorted(read_checkpoint(folder).tensors.items()):
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset)
            yield name, stream.read(tensor.nbytes)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def listed(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): digest(file) for file in files}


@pytest.mark.parametrize("lora", ["merge", "keep"])
def test_both_paths_say_what_they_should(
    lora: str, wide: Path, adapter: Path, tmp_path: Path, surgery: Any
) -> None:
    out = tmp_path / "out"
    assert surgery("export", adapter, "--out", out, "--lora", lora)[0] == 0
    model = load_adapter(adapter).eval()
    with text_path(model):
        text = greedy(model, wide)
    seen = greedy(model, wide)
    assert text != seen, "training moved nothing"
    assert ran(surgery, out, "text") == text == greedy(load_base(str(wide)), wide)
    assert ran(surgery, out, "multimodal") == seen
    assert list(bytes_of(out / "llm")) == list(bytes_of(wide))
    plain = AutoModelForCausalLM.from_pretrained(out / "llm")
    assert greedy(plain, out / "llm") == text


def test_merged_and_kept_differ_by_rounding_alone(adapter: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from surgery.export.export import export_adapter

    export_adapter(adapter, tmp_path / "merged")
    export_adapter(adapter, tmp_path / "kept", lora="keep")
    ids = torch.randint(3, 2000, (2, 24), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "kept" / "multimodal")
    kept = PeftModel.from_pretrained(plain, tmp_path / "kept" / "lora").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "multimodal").eval()
    with torch.no_grad():
        wanted = load_adapter(adapter).eval()(ids).logits
        scale = wanted.abs().max()
        assert (kept(ids).logits - wanted).abs().max() < 1e-5 * scale
        assert (merged(ids).logits - wanted).abs().max() < 1e-5 * scale


def test_the_manifest_tells_every_file(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    out = tmp_path / "out"
    words = ("export", adapter, "--out", out, "--lora", "keep", "--target", "snapdragon")
    code, told, _ = surgery(*words, "--format", "json")
    assert code == 0
    manifest = read_manifest(out)
    assert json.loads(told) == manifest.model_dump(mode="json")
    named = {f"{part}/{f.name}": f for part, r in manifest.parts.items() for f in r.files}
    found = listed(out)
    assert found.keys() == {*named, "manifest.json", "plan.json"}
    for name, file in named.items():
        assert (out / name).stat().st_size == file.bytes
        assert file.sha256 in ((None,) if "link" in file.how else (found[name],))
    assert manifest.paths == {"text": ("llm",), "multimodal": ("multimodal", "lora")}
    assert manifest.target == "snapdragon-8-elite"
    assert manifest.plan.sha256 == found["plan.json"]
    assert manifest.recipe["operations"]["copies"]["op"] == "duplicate"
    assert manifest.fingerprint["sample"]
    assert {"python", "surgery", "transformers", "peft"} <= manifest.toolchain.keys()
    assert str(tmp_path) not in (out / "manifest.json").read_text().replace(manifest.model, "")


def test_a_shared_base_is_one_part(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    out = tmp_path / "out"
    assert surgery("export", adapter, "--out", out, "--base", "shared")[0] == 0
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "multimodal", "plan.json"]
    assert ran(surgery, out, "text") == ran(surgery, out, "multimodal")


@pytest.mark.parametrize("recipe", ["full_finetune", "llama_pro", "drop_blocks"])
def test_what_is_plain_already_keeps_its_base_beside_it(
    recipe: str, tmp_path: Path, surgery: Any
) -> None:
    plan = plan_recipe(load_recipe(recipe), weights=True)
    adapter, out = tmp_path / "a", tmp_path / "out"
    save_adapter(plan, perturbed(apply_plan(plan, load_base(str(BASE)))), adapter)
    assert surgery("export", adapter, "--out", out)[0] == 0
    assert list(bytes_of(out / "llm")) == list(bytes_of(BASE))
    assert list(bytes_of(out / "multimodal")) == list(bytes_of(adapter))
    assert ran(surgery, out, "text") == greedy(load_base(str(BASE)), BASE)
    assert ran(surgery, out, "multimodal") == greedy(load_base(str(adapter)), BASE)


@pytest.mark.slow
def test_an_assembled_model_has_its_language_model_alone(
    seeing: tuple[Path, Path], tmp_path: Path, surgery: Any
) -> None:
    adapter, picture = seeing
    for lora in ("merge", "keep"):
        out = tmp_path / lora
        assert surgery("export", adapter, "--out", out, "--lora", lora)[0] == 0
        assert list(bytes_of(out / "llm")) == list(bytes_of(BASE))
        assert ran(surgery, out, "text") == greedy(load_base(str(BASE)), BASE)
        for how in ("--raw", "--chat"):
            said = ran(surgery, out, "multimodal", "--image", picture, how)
            if lora == "keep":
                assert said == asked(adapter, picture, chat=how == "--chat")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model: Any = load_adapter(adapter).eval()
    size = model.config.vision_config.image_size
    ids = torch.tensor([[1, *[model.config.image_token_id] * model.config.image_seq_length, 40]])
    inputs = {"input_ids": ids, "pixel_values": image[..., :size, :size].to(model.dtype)}
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merge" / "multimodal").eval()
    base = load_base(str(adapter / "assembled")).eval()
    with torch.no_grad():
        wanted, found = (m.float()(**_wide(inputs)).logits for m in (model, plain))
        untouched = base.float()(**_wide(inputs)).logits
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert (wanted - untouched).abs().max() > 0.1 * wanted.abs().max()


def asked(adapter: Path, picture: Path, *, chat: bool) -> list[int]:
    """What the adapter itself says to the prompt after a picture."""
    from surgery.data.vocabulary import load_processor
    from surgery.runtime.prompt_encoding import encoded

    prompt = Prompt(PROMPT, (picture,), chat)
    inputs = encoded(load_processor(adapter / "assembled"), prompt, "multimodal")
    said = load_adapter(adapter).eval().generate(**inputs, do_sample=False, max_new_tokens=NEW)
    tokens: list[int] = said[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def _wide(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}


def test_a_picture_needs_eyes(
    adapter: Path, seeing: tuple[Path, Path], tmp_path: Path, surgery: Any
) -> None:
    assert surgery("export", adapter, "--out", tmp_path / "blind")[0] == 0
    assert surgery("export", seeing[0], "--out", tmp_path / "seeing")[0] == 0
    (tmp_path / "notes.txt").write_text("no picture")
    for folder, path, image, expected in (
        ("blind", "multimodal", seeing[1], "R132"),
        ("seeing", "text", seeing[1], "R132"),
        ("seeing", "multimodal", tmp_path / "notes.txt", "R133"),
        ("seeing", "multimodal", tmp_path / "missing.png", "R133"),
    ):
        words = ("--path", path, "--prompt", "What?", "--image", image)
        code, told, error = surgery("run", tmp_path / folder, *words)
        assert (code, told) == (2 if expected == "R132" else 3, "")
        assert f"error[{expected}]" in error


def test_the_chat_template_is_for_who_wants_it(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    out = tmp_path / "out"
    assert surgery("export", adapter, "--out", out)[0] == 0
    raw = run_export(out, "text", PROMPT, new_tokens=1)
    assert raw.prompt == run_export(out, "text", PROMPT, chat=False, new_tokens=1).prompt
    asked = run_export(out, "text", PROMPT, chat=True, new_tokens=1)
    assert len(asked.prompt) > len(raw.prompt)


LOOK = """
import sys
from surgery.cli import main
try:
    main()
except SystemExit:
    print("imported:", *({"torch", "transformers", "peft"} & set(sys.modules)))
"""


@pytest.mark.parametrize("lora", ["merge", "keep"])
def test_nothing_is_loaded(lora: str, adapter: Path, tmp_path: Path) -> None:
    words = ["export", str(adapter), "--out", "out", "--lora", lora, "--format", "json"]
    run = [sys.executable, "-c", LOOK, *words]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported:\n"), done.stdout[-200:]


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_unknown_form_and_target_are_told(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    for words, expected in ((("--to", "hff"), "R131"), (("--target", "snapdragoon"), "R121")):
        code, _, error = surgery("export", adapter, "--out", tmp_path / "out", *words)
        assert code == 2
        assert f"error[{expected}]" in error
    assert list(tmp_path.iterdir()) == []


def test_another_base_is_refused(wide: Path, adapter: Path, tmp_path: Path, surgery: Any) -> None:
    other = tmp_path / "other"
    shutil.copytree(wide, other)
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    code, _, error = surgery("export", adapter, "--out", tmp_path / "out", "--at", other)
    assert code == 3
    assert "error[A401]" in error
    assert not (tmp_path / "out").exists()


def test_what_is_no_adapter_and_no_export_is_told(
    adapter: Path, tmp_path: Path, surgery: Any
) -> None:
    code, _, error = surgery("export", tmp_path, "--out", tmp_path / "out")
    assert code == 3
    assert "error[A402]" in error
    code, _, error = surgery("run", adapter, "--path", "text", "--prompt", "x")
    assert code == 3
    assert "error[A601]" in error


def test_an_export_that_lost_a_file_is_told(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    out = tmp_path / "out"
    assert surgery("export", adapter, "--out", out)[0] == 0
    (out / "multimodal" / "tokenizer.json").unlink()
    code, _, error = surgery("run", out, "--path", "multimodal", "--prompt", "x")
    assert code == 3
    assert "error[A605]" in error
    assert surgery("run", out, "--path", "text", "--prompt", "x")[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["sha256"]  # as older versions wrote it; with it, any change is A609
    for changed in ({"format": "onyx"}, {"format_version": "9.0"}, {"parts": 1}):
        (out / "manifest.json").write_text(json.dumps({**manifest, **changed}))
        code, _, error = surgery("run", out, "--path", "text", "--prompt", "x")
        assert code == 3
        assert "error[A601]" in error


def test_a_second_export_needs_overwrite(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    words = ("export", adapter, "--out", tmp_path / "out")
    assert surgery(*words)[0] == 0
    before = listed(tmp_path / "out")
    code, _, error = surgery(*words, "--lora", "keep")
    assert code == 3
    assert "error[A301]" in error
    assert listed(tmp_path / "out") == before
    assert surgery(*words, "--lora", "keep", "--overwrite")[0] == 0
    assert (tmp_path / "out" / "lora").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from surgery.storage.safetensors import stream
from surgery.export.export import prepare_export
write = stream.transfer
def die(file, *rest):
    write(file, *rest)
    if file.parent.name == "multimodal":
        os.kill(os.getpid(), signal.SIGKILL)
stream.transfer = die
prepare_export(Path(sys.argv[1])).write(Path(sys.argv[2]), overwrite=True)
"""


def test_a_killed_export_leaves_the_old_folder(adapter: Path, tmp_path: Path, surgery: Any) -> None:
    out = tmp_path / "out"
    words = ("export", adapter, "--out", out, "--lora", "keep")
    assert surgery(*words)[0] == 0
    before = listed(out)
    run = [sys.executable, "-c", KILLED, str(adapter), str(out)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert listed(out) == before
    assert {f.name for f in tmp_path.iterdir()} == {"out", ".out.partial", ".out.lock"}
    assert surgery(*words, "--overwrite")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_before_anything_is_written(
    adapter: Path, tmp_path: Path, surgery: Any
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    done = shutil.which("mount") and subprocess.run(mount, check=False, capture_output=True)
    if not done or done.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        code, _, error = surgery("export", adapter, "--out", disk / "out")
        assert code == 3
        assert "error[A302]" in error
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
