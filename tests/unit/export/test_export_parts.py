"""The pieces of an export: merged matrices, streams with their hashes, links, kept LoRA."""

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.shrink import tiny_config
from tiny import CONVERTED, FAMILIES, perturbed, save_tiny, tokens, without_prefix
from transformers import AutoModelForCausalLM

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, save_adapter, write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter, prepare_export
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.storage.link import can_link, link_file
from surgery.storage.safetensors.checkpoint import read_checkpoint
from surgery.storage.safetensors.header import read_header
from surgery.storage.safetensors.lora_merge import LowRank, low_rank, merged, reader
from surgery.storage.safetensors.stream import (
    STREAM_CHUNK_BYTES,
    copy_streamed,
    hash_file,
    streamed,
    write_streamed,
)
from surgery.storage.safetensors.writer import NewTensor, file_size

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
RANKS = """\
defaults: [base, _self_]
operations:
  copies: {op: duplicate, blocks: [3]}
  low: {op: lora, blocks: [1], modules: [attention], rank: 2, alpha: 2}
  high: {op: lora, blocks: [2], modules: [q, down], rank: 6, alpha: 3}
  default: {op: lora, blocks: rest, modules: [mlp], rank: 4}
train: [copies, low, high, default]
"""


def adapter_of(folder: Path, base: Path, recipe: str, *overrides: str) -> Path:
    """An adapter that is moved off its start, as training would."""
    plan = plan_recipe(load_recipe(recipe, [f"model={base}", *overrides]), weights=True)
    save_adapter(plan, perturbed(apply_plan(plan, load_base(str(base)))), folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.float().eval()(tokens()).logits


def with_lora(export: Path) -> Any:
    return PeftModel.from_pretrained(load_base(str(export / "multimodal")), str(export / "lora"))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- one matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_matrix_is_the_exact_sum_rounded_once(
    dtype: str, is_transposed: bool, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (301, 5000) if is_transposed else (5000, 301)  # more than one piece, odd tiles
    weight = torch.randn(shape, generator=generator).to(DTYPES[dtype])
    a = torch.randn(6, 301, generator=generator)
    b = torch.randn(5000, 6, generator=generator)
    stored = NewTensor("w", dtype, shape, lambda: weight.view(torch.uint8).numpy().tobytes())
    write_streamed(tmp_path / "w.safetensors", [streamed(stored)])
    tensor = read_header(tmp_path / "w.safetensors")["w"]
    pair = low_rank(a.numpy(), b.numpy(), 1.7, is_transposed=is_transposed)
    made = b"".join(merged(reader(tensor), dtype, lambda: pair))
    found = torch.frombuffer(bytearray(made), dtype=DTYPES[dtype]).reshape(shape)
    delta = 1.7 * (b.double() @ a.double())
    exact = weight.double() + (delta.T if is_transposed else delta)
    step = torch.finfo(DTYPES[dtype]).eps
    error = (found.double() - exact).abs()
    assert (error <= 0.501 * step * exact.abs().clamp(min=1) + 4e-6).all()
    assert not torch.equal(found, weight)


def test_nothing_added_keeps_every_bit(tmp_path: Path) -> None:
    """Also of infinities, subnormals and the two zeros; a NaN stays one."""
    raw = np.arange(65536, dtype="<u2")
    tensor = NewTensor("w", "BF16", (256, 256), raw.tobytes)
    write_streamed(tmp_path / "w.safetensors", [streamed(tensor)])
    held = read_header(tmp_path / "w.safetensors")["w"]
    nothing = LowRank(np.zeros((256, 1), np.float32), np.zeros((1, 256), np.float32))
    made = np.frombuffer(b"".join(merged(reader(held), "BF16", lambda: nothing)), "<u2")
    values = torch.from_numpy(raw.view("<i2").copy()).view(torch.bfloat16).float()
    found = torch.from_numpy(made.view("<i2").copy()).view(torch.bfloat16).float()
    assert torch.equal(found.isnan(), values.isnan())
    assert torch.equal(found[~found.isnan()], values[~values.isnan()])


# --- streams and links ----------------------------------------------------------------------------


def test_the_hash_is_the_files_and_the_bytes_are_told(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * STREAM_CHUNK_BYTES + 5)
    (tmp_path / "a").write_bytes(content)
    told: list[int] = []
    found = copy_streamed(tmp_path / "a", tmp_path / "b", told.append)
    assert found == digest(tmp_path / "b") == hash_file(tmp_path / "a")
    assert sum(told) == len(content)
    tensors = [streamed(NewTensor(n, "U8", (len(content),), lambda: content)) for n in "xyz"]
    found = write_streamed(tmp_path / "c", tensors)
    assert found == digest(tmp_path / "c")
    assert (tmp_path / "c").stat().st_size == file_size(t.spec for t in tensors)


def test_a_source_that_ends_early_leaves_no_file(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    tensors = read_checkpoint(base).tensors.values()
    file = base / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    new = [streamed(NewTensor(t.name, t.dtype, t.shape, t)) for t in tensors]
    with pytest.raises(SurgeryError, match="M204"):
        write_streamed(tmp_path / "out", new)
    assert not (tmp_path / "out").exists()


def test_a_link_is_made_or_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "to_a").symlink_to("a")
    assert link_file(tmp_path / "to_a", tmp_path / "c") in ("reflink", None)
    how = link_file(tmp_path / "to_a", tmp_path / "b", hard=True)
    assert how in ("reflink", "hard link")
    assert can_link(tmp_path / "to_a", tmp_path / "no" / "b", hard=True)
    assert (tmp_path / "b").read_bytes() == b"bytes"
    assert not (tmp_path / "b").is_symlink()
    other = Path("/dev/shm")
    if other.is_dir() and other.stat().st_dev != tmp_path.stat().st_dev:
        assert link_file(tmp_path / "a", other / f"surgery-{os.getpid()}", hard=True) is None
        assert not can_link(tmp_path / "a", other / "surgery", hard=True)
        assert not (other / f"surgery-{os.getpid()}").exists()


def test_looking_for_a_way_to_link_leaves_what_is_to_be_replaced_alone(tmp_path: Path) -> None:
    """Else `--overwrite` would find it changed by itself, and refuse to replace it."""
    (tmp_path / "a").write_bytes(b"bytes")
    out = tmp_path / "out"
    out.mkdir()
    os.utime(out, ns=(1, 1))
    can_link(tmp_path / "a", out)
    assert out.stat().st_mtime_ns == 1


def test_an_export_is_exported_over_however_slow_the_disk(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = adapter_of(tmp_path / "a", base, "lora")
    for _ in range(2):
        export_adapter(adapter, tmp_path / "out", overwrite=True)
        os.utime(tmp_path / "out", ns=(1, 1))


def test_saving_into_linked_weights_spares_the_base(tmp_path: Path) -> None:
    """Today's safetensors writes a new file; an older one would write into the base."""
    base = save_tiny(tmp_path / "base")
    adapter = adapter_of(tmp_path / "a", base, "lora")
    export_adapter(adapter, tmp_path / "out", link=True)
    before = digest(base / "model.safetensors")
    model = load_base(str(tmp_path / "out" / "llm"))
    perturbed(model).save_pretrained(tmp_path / "out" / "llm")
    assert digest(tmp_path / "out" / "llm" / "model.safetensors") != before
    assert digest(base / "model.safetensors") == before


# --- whole checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_merged_and_kept_is_the_adapter(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family)
    adapter = adapter_of(tmp_path / "a", base, "genieblue_skip", "rank=4")
    wanted = logits(load_adapter(adapter))
    export_adapter(adapter, tmp_path / "merged")
    export_adapter(adapter, tmp_path / "kept", lora="keep")
    merged = logits(load_base(str(tmp_path / "merged" / "multimodal")))
    assert torch.allclose(merged, wanted, atol=2e-5)
    assert torch.allclose(logits(with_lora(tmp_path / "kept")), wanted, atol=2e-5)
    untouched = logits(load_base(str(base)))
    assert torch.equal(logits(load_base(str(tmp_path / "merged" / "llm"))), untouched)
    assert (wanted - untouched).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_in_half_precision_only_rounding_differs(dtype: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype=DTYPES[dtype], shards=True)
    adapter = adapter_of(tmp_path / "a", base, "genieblue_skip")
    wanted = logits(load_adapter(adapter))
    export_adapter(adapter, tmp_path / "merged")
    export_adapter(adapter, tmp_path / "kept", lora="keep")
    merged = logits(load_base(str(tmp_path / "merged" / "multimodal")))
    kept = logits(with_lora(tmp_path / "kept"))
    assert torch.allclose(kept, wanted, atol=2e-5)
    assert (merged - wanted).abs().max() < 0.02 * wanted.abs().max()
    held = read_checkpoint(tmp_path / "merged" / "multimodal").tensors
    assert {t.dtype for t in held.values()} == {dtype}
    assert held.keys() == read_checkpoint(base).tensors.keys()


@pytest.mark.parametrize("family", CONVERTED)
def test_experts_that_are_stacked_in_memory_are_put_in_place(family: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", family)
    attention = "operations.adapters.modules=[attention]"
    adapter = adapter_of(tmp_path / "a", base, "genieblue_skip", attention)
    export_adapter(adapter, tmp_path / "out")
    found = logits(load_base(str(tmp_path / "out" / "multimodal")))
    assert torch.allclose(found, logits(load_adapter(adapter)), atol=2e-5)


def test_names_on_disk_stay_what_they_are(tmp_path: Path) -> None:
    """The hub's GPT-2 is stored without `transformer.` in front."""
    base = without_prefix(save_tiny(tmp_path / "base", "gpt2"), "transformer.")
    adapter = adapter_of(tmp_path / "a", base, "genieblue_skip", "rank=4")
    export_adapter(adapter, tmp_path / "out")
    names = read_checkpoint(tmp_path / "out" / "multimodal").tensors.keys()
    assert names == read_checkpoint(base).tensors.keys()
    found = logits(load_base(str(tmp_path / "out" / "multimodal")))
    assert torch.allclose(found, logits(load_adapter(adapter)), atol=2e-5)


@pytest.mark.parametrize("option", ["", ".peft.use_rslora=true"])
def test_ranks_and_scales_become_one(option: str, tmp_path: Path) -> None:
    (tmp_path / "ranks.yaml").write_text(RANKS)
    base = save_tiny(tmp_path / "base")
    words = [f"operations.{n}{option}" for n in ("low", "high", "default")] if option else []
    adapter = adapter_of(tmp_path / "a", base, str(tmp_path / "ranks.yaml"), *words)
    export_adapter(adapter, tmp_path / "kept", lora="keep")
    export_adapter(adapter, tmp_path / "merged")
    wanted = logits(load_adapter(adapter))
    model = with_lora(tmp_path / "kept")
    config = model.peft_config["default"]
    assert not config.rank_pattern
    assert not config.alpha_pattern
    assert not config.use_rslora
    shapes = {
        t.shape for n, t in load_file(tmp_path / "kept/lora/adapter_model.safetensors").items()
    }
    assert {6} == {min(shape) for shape in shapes}
    assert torch.allclose(logits(model), wanted, atol=2e-5)
    merged = logits(load_base(str(tmp_path / "merged" / "multimodal")))
    assert torch.allclose(merged, wanted, atol=2e-5)


def test_nobody_gets_the_bases_own_files_unasked(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", shards=True)
    adapter = adapter_of(tmp_path / "a", base, "lora")
    before = {file.name: (digest(file), file.stat().st_mode) for file in base.iterdir()}
    prepared = prepare_export(adapter, lora="keep")
    told: list[int] = []
    manifest = prepared.write(tmp_path / "out", progress=told.append)
    sizes = [f.bytes for p in manifest.parts.values() for f in p.files if f.how == "copied"]
    shared = [f for p in manifest.parts.values() for f in p.files if f.how == "reflink"]
    assert "hard link" not in {f.how for p in manifest.parts.values() for f in p.files}
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    assert prepared.copied(tmp_path / "new") == (0 if shared else 2 * weights)
    assert sum(sizes) >= prepared.copied(tmp_path / "new")
    assert sum(told) >= prepared.copied(tmp_path / "new")
    for file in (tmp_path / "out").rglob("*.*"):
        file.chmod(0o600)
        file.write_bytes(b"new")
    assert {f.name: (digest(f), f.stat().st_mode) for f in base.iterdir()} == before


def test_room_for_copies_is_asked_for_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base")
    prepared = prepare_export(adapter_of(tmp_path / "a", base, "lora"))
    needed = prepared.required_space(tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(SurgeryError, match=f"A302.*\n.*{needed:,} bytes are needed"):
        prepared.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reflink_is_tried_out_before_its_room_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a disk that has them: the kernel's call copies."""

    def clone(target: int, request: int, source: int) -> int:
        os.write(target, os.pread(source, 1 << 30, 0))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    base = save_tiny(tmp_path / "base")
    prepared = prepare_export(adapter_of(tmp_path / "a", base, "lora"), lora="keep")
    assert prepared.copied(tmp_path / "out") == 0
    before = sorted(os.listdir(tmp_path))
    manifest = prepared.write(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "out"])
    assert {f.how for f in manifest.parts["llm"].files} == {"reflink", "copied"}


def test_a_file_that_nothing_changes_is_linked_too(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", shards=True)
    adapter = adapter_of(tmp_path / "a", base, "lora")
    manifest = export_adapter(adapter, tmp_path / "out", lora="keep", link=True)
    hows = [f.how for f in manifest.parts["multimodal"].files if f.name.endswith(".safetensors")]
    assert len(hows) > 1
    assert set(hows) <= {"hard link", "reflink"}
    copied = export_adapter(adapter, tmp_path / "copied", lora="keep", copy=True)
    for name, part in copied.parts.items():
        for file in part.files:
            assert file.how in ("copied", "written")
            assert file.sha256 == digest(tmp_path / "copied" / name / file.name)
    read = export_adapter(adapter, tmp_path / "read", link=True, checksum=True)
    for file in read.parts["llm"].files:
        assert file.sha256 == digest(base / file.name)


# --- what can't be --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["cogvlm_skip", "wings"])
def test_what_no_class_holds_is_refused(recipe: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = adapter_of(tmp_path / "a", base, recipe, "rank=4")
    with pytest.raises(SurgeryError, match="A602"):
        prepare_export(adapter)


@pytest.mark.parametrize(
    ("option", "form"),
    [
        ("use_dora=true", "merge"),
        ("init_lora_weights=pissa", "merge"),
        ("init_lora_weights=olora", "keep"),
    ],
)
def test_lora_that_is_no_sum_is_refused(option: str, form: Any, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = adapter_of(tmp_path / "a", base, "lora", f"operations.adapters.peft.{option}")
    with pytest.raises(SurgeryError, match="A603"):
        prepare_export(adapter, lora=form)


def test_dora_is_kept(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    adapter = adapter_of(tmp_path / "a", base, "lora", "operations.adapters.peft.use_dora=true")
    export_adapter(adapter, tmp_path / "out", lora="keep")
    assert torch.allclose(
        logits(with_lora(tmp_path / "out")), logits(load_adapter(adapter)), atol=2e-5
    )


def test_lora_on_packed_weights_is_kept_alone(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    file = base / "config.json"
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **packed}))
    write_adapter(plan_recipe(load_recipe("lora", [f"model={base}"]), weights=True), tmp_path / "a")
    with pytest.raises(SurgeryError, match="A603"):
        prepare_export(tmp_path / "a")
    manifest = export_adapter(tmp_path / "a", tmp_path / "out", lora="keep")
    assert {"llm", "multimodal", "lora"} == manifest.parts.keys()


def test_blocks_that_share_weights_stay_as_they_are(tmp_path: Path) -> None:
    """Zamba2's class gives both blocks the copy, or the merged matrix, when it loads."""
    base = tmp_path / "base"
    with torch.random.fork_rng():
        config = tiny_config("zamba2")
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    mixers = "operations.adapters.modules=[mixer]"
    for recipe, words, expected in (
        ("genieblue_skip", ["operations.copies.blocks=[3]", mixers], "A604"),
        ("lora", ["operations.adapters.modules=[q]"], "A603"),
    ):
        plan = plan_recipe(load_recipe(recipe, [f"model={base}", "rank=2", *words]), weights=True)
        write_adapter(plan, tmp_path / recipe)
        with pytest.raises(SurgeryError, match=expected):
            prepare_export(tmp_path / recipe)


@pytest.mark.parametrize(
    ("to", "option", "value"),
    [
        ("hf", "calibration", "talk.jsonl"),
        ("hf", "prefill", 8),
        ("onnx", "quantizer", "onnxruntime"),
        ("onnx", "calibration", "nofile"),
        ("onnx", "link", True),
        ("qnn", "checksum", True),
        ("executorch", "copy", True),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    to: str, option: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(SurgeryError, match=f"A610.*--{option}"):
        prepare_export(tmp_path, to=to, **{option: value})
