"""Reading headers, indexes and fingerprints, and every way in which they can be wrong."""

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from surgery.diagnostics.diagnostic import EXIT_ENVIRONMENT, SurgeryError
from surgery.storage.safetensors.checkpoint import (
    INDEX_NAME,
    WEIGHTS_NAME,
    fingerprint,
    read_checkpoint,
    read_header,
)
from surgery.storage.safetensors.dtypes import DTYPE_BYTES, FLOATS, TORCH_NAMES, numpy_type

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "b.weight": torch.arange(300, dtype=torch.float32),
    "c.bias": torch.tensor(7, dtype=torch.int64),
    "d.empty": torch.zeros(0, 5),
}


def test_dtypes_are_those_of_safetensors_and_torch() -> None:
    types = {name: getattr(torch, known) for name, known in TORCH_NAMES.items()}
    assert safetensors.torch._TYPES.items() <= types.items()
    assert {name: kind.itemsize for name, kind in types.items()}.items() <= DTYPE_BYTES.items()
    assert {name: numpy_type(name).itemsize for name in FLOATS}.items() <= DTYPE_BYTES.items()


def save_single(folder: Path, tensors=TENSORS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME, {"format": "pt"})
    return folder


def save_shards(folder: Path, shards: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / shard)
    listed = {name: shard for shard, names in shards.items() for name in names}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


def two_shards(folder: Path) -> Path:
    names = list(TENSORS)
    return save_shards(folder, {"m-1.safetensors": names[2:], "m-2.safetensors": names[:2]})


def raw_file(file: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(dtype="F32", shape=(2,), span=(0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def refusal(call, *given) -> SurgeryError:
    with pytest.raises(SurgeryError) as caught:
        call(*given)
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    return caught.value


def codes(error: SurgeryError) -> list[str]:
    return [diagnostic.code for diagnostic in error.diagnostics]


def test_read_header_gives_byte_ranges_of_what_safetensors_wrote(tmp_path):
    file = save_single(tmp_path) / WEIGHTS_NAME
    content = file.read_bytes()
    types = read_header(file)
    assert types.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        tensor_location = types[name]
        assert tensor_location.shape == tuple(tensor.shape)
        assert tensor_location.nbytes == tensor.numel() * DTYPE_BYTES[tensor_location.dtype]
        expected = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0)
        stored = content[tensor_location.offset : tensor_location.offset + tensor_location.nbytes]
        assert stored == bytes(expected.to(torch.uint8).tolist())


def test_read_header_accepts_a_file_with_no_tensors(tmp_path):
    assert read_header(raw_file(tmp_path / "f", {"__metadata__": {"format": "pt"}})) == {}


@pytest.mark.parametrize("length", [0, 5, 8, 30, 200, -1])
def test_read_header_refuses_a_truncated_file(tmp_path, length):
    file = save_single(tmp_path) / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:length])
    assert codes(refusal(read_header, file)) == ["M204"]


def test_read_header_refuses_a_reserved_file_of_zeros(tmp_path):
    file = tmp_path / "f"
    file.write_bytes(bytes(4096))
    assert codes(refusal(read_header, file)) == ["M204"]


def test_read_header_names_unfinished_downloads(tmp_path):
    file = save_single(tmp_path) / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-9])
    cache = tmp_path / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "abc.incomplete").touch()
    assert "abc.incomplete" in str(refusal(read_header, file))


def test_read_header_refuses_a_git_lfs_pointer(tmp_path):
    file = tmp_path / WEIGHTS_NAME
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    error = refusal(read_header, file)
    assert codes(error) == ["M206"]
    assert "git lfs pull" in str(error)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"<!doctype html>", b"", "does not begin"),
        (b"{nonsense", b"", "header is wrong"),
        (b'{"a": \xff}', b"", "header is wrong"),
        (b'{"a":' * 100_000, b"", "nested"),
        ({"a": 3}, b"", "lacks its dtype"),
        ({"a": {"dtype": "F32"}}, b"", "lacks its dtype"),
        ({"a": entry(dtype="F31")}, bytes(8), "F31"),
        ({"a": entry(dtype=["F32"])}, bytes(8), "header is wrong"),
        ({"a": entry(shape=[-2])}, bytes(8), "no count"),
        ({"a": entry(shape=[2.0])}, bytes(8), "no count"),
        ({"a": entry(shape=[True])}, bytes(8), "no count"),
        ({"a": entry(shape=[3])}, bytes(8), "does not fill"),
        ({"a": entry(dtype="F4", shape=[1], span=[0, 1])}, b"1", "whole bytes"),
        ({"a": entry(), "b": entry(span=[4, 12])}, bytes(12), "overlaps"),
        ({"a": entry(), "b": entry(span=[9, 17])}, bytes(17), "hole"),
        ({"a": entry()}, bytes(9), "1 bytes follow"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        ({"__metadata__": "pt", "a": entry()}, bytes(8), "no map of texts"),
        ({"__metadata__": {"format": 1}, "a": entry()}, bytes(8), "no map of texts"),
        ({"__metadata__": {"format": "\ud800"}, "a": entry()}, bytes(8), "surrogates"),
        ({"\ud800": entry()}, bytes(8), "surrogates"),
        ({"a": {**entry(), "note": float("nan")}}, bytes(8), "a key 'note'"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', bytes(8), "-0"),
        ('{"a": 1}'.encode("utf-16-le"), b"", "header is wrong"),
    ],
)
def test_read_header_refuses_what_is_not_safetensors(tmp_path, header, data, message):
    error = refusal(read_header, raw_file(tmp_path / "f", header, data))
    assert codes(error) == ["M205"]
    assert message in str(error)


def test_read_header_refuses_a_zip_of_pickles(tmp_path):
    torch.save(TENSORS, tmp_path / "f")
    assert codes(refusal(read_header, tmp_path / "f")) == ["M205"]


def test_read_header_refuses_a_missing_file_and_a_folder(tmp_path):
    assert codes(refusal(read_header, tmp_path / "none")) == ["M201"]
    assert codes(refusal(read_header, tmp_path)) == ["M207"]


def test_read_header_refuses_a_file_without_permission(tmp_path):
    file = save_single(tmp_path) / WEIGHTS_NAME
    file.chmod(0)
    if os.geteuid() == 0:  # who could read it all the same
        os.seteuid(65534)
    try:
        error = refusal(read_header, file)
    finally:
        os.seteuid(os.getuid())
    assert codes(error) == ["M207"]
    assert "Permission denied" in str(error)


def test_read_checkpoint_reads_a_single_file_as_it_reads_shards(tmp_path):
    single = read_checkpoint(save_single(tmp_path / "single"))
    shards = read_checkpoint(two_shards(tmp_path / "shards"))
    assert single.tensors.keys() == shards.tensors.keys() == TENSORS.keys()
    assert [file.name for file in shards.files] == ["m-1.safetensors", "m-2.safetensors"]
    assert shards.tensors["a.weight"].file == tmp_path / "shards" / "m-2.safetensors"


def test_read_checkpoint_prefers_the_single_file(tmp_path):
    two_shards(tmp_path)
    save_single(tmp_path)
    assert read_checkpoint(tmp_path).files == (tmp_path / WEIGHTS_NAME,)


def test_read_checkpoint_reads_links_as_in_the_hub_cache(tmp_path):
    blobs = two_shards(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert read_checkpoint(snapshot).tensors.keys() == TENSORS.keys()
    (blobs / "m-1.safetensors").rename(blobs / "abcd.incomplete")
    error = refusal(read_checkpoint, snapshot)
    assert codes(error) == ["M203"]
    assert "m-1.safetensors (a broken link)" in str(error)
    assert "abcd.incomplete" in str(error)


def test_read_checkpoint_refuses_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    error = refusal(read_checkpoint, tmp_path)
    assert codes(error) == ["M201"]
    assert codes(refusal(read_checkpoint, tmp_path / "none")) == ["M201"]
    assert codes(refusal(read_checkpoint, tmp_path / "config.json")) == ["M201"]
    (tmp_path / "config.json").unlink()
    two_shards(tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    assert f"download {INDEX_NAME} too" in str(refusal(read_checkpoint, tmp_path))


def test_read_checkpoint_says_how_to_convert_pickles(tmp_path):
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    error = refusal(read_checkpoint, tmp_path)
    assert codes(error) == ["M202"]
    assert "save_pretrained" in str(error)


def test_read_checkpoint_names_all_missing_shards(tmp_path):
    two_shards(tmp_path)
    for shard in ("m-1.safetensors", "m-2.safetensors"):
        (tmp_path / shard).unlink()
    error = refusal(read_checkpoint, tmp_path)
    assert codes(error) == ["M203"]
    assert "m-1.safetensors, m-2.safetensors" in str(error)


def test_read_checkpoint_reports_all_shards_together(tmp_path):
    names = list(TENSORS)
    save_shards(tmp_path, {f"m-{i}.safetensors": [name] for i, name in enumerate(names)})
    (tmp_path / "m-0.safetensors").unlink()
    (tmp_path / "m-1.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    half = (tmp_path / "m-2.safetensors").read_bytes()[:-3]
    (tmp_path / "m-2.safetensors").write_bytes(half)
    save_file({"other": torch.zeros(1)}, tmp_path / "m-3.safetensors")
    assert codes(refusal(read_checkpoint, tmp_path)) == ["M203", "M206", "M204", "M208"]


def test_read_checkpoint_refuses_a_tensor_in_two_shards(tmp_path):
    two_shards(tmp_path)
    save_file(TENSORS, tmp_path / "m-2.safetensors")
    error = refusal(read_checkpoint, tmp_path)
    assert codes(error) == ["M208"]
    assert "c.bias, d.empty again" in str(error)


def test_read_checkpoint_keeps_a_tensor_that_the_index_does_not_name(tmp_path):
    two_shards(tmp_path)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    del index["weight_map"]["a.weight"]
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    assert read_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../m-1.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
    ],
)
def test_read_checkpoint_refuses_a_broken_index(tmp_path, text):
    two_shards(tmp_path)
    (tmp_path / INDEX_NAME).write_text(text)
    assert codes(refusal(read_checkpoint, tmp_path)) == ["M208"]


def test_fingerprint_does_not_depend_on_the_shards(tmp_path):
    seen = []
    single = fingerprint(read_checkpoint(save_single(tmp_path / "1")), checksum=True)
    shards = fingerprint(
        read_checkpoint(two_shards(tmp_path / "2")), checksum=True, progress=seen.append
    )
    assert single == shards
    assert single["config"] is None
    assert sum(seen) == sum(t.numel() * t.element_size() for t in TENSORS.values())


def test_fingerprint_tells_apart_fine_tunes_and_middles(tmp_path):
    def prints(name, at):
        tensor = torch.zeros(1000)
        tensor[at] = 1
        folder = save_single(tmp_path / name, {"a": tensor})
        return fingerprint(read_checkpoint(folder), checksum=True)

    first, last, middle, other = (
        prints(n, at) for n, at in [("a", 0), ("b", -1), ("c", 500), ("d", 501)]
    )
    assert first["tensors"] == last["tensors"] == middle["tensors"]
    assert len({p["sample"] for p in (first, last, middle)}) == 3
    assert middle["sample"] == other["sample"]
    assert middle["checksum"] != other["checksum"]
    assert fingerprint(read_checkpoint(tmp_path / "a"))["checksum"] is None


def test_fingerprint_samples_a_large_checkpoint_all_over(tmp_path, monkeypatch):
    monkeypatch.setattr("surgery.storage.safetensors.checkpoint._READ_WHOLE", 0)
    monkeypatch.setattr("surgery.storage.safetensors.checkpoint._STRIDED_BYTES", 64 << 10)

    def strided(name, changed=None):
        tensor = torch.zeros(256, 1024)  # 1 MiB
        if changed:
            tensor[changed] = 1
        folder = save_single(tmp_path / name, {"a": tensor, "b": torch.zeros(3)})
        return fingerprint(read_checkpoint(folder))["strided"]

    same = strided("same")
    for row in (5, 100, 128, 200, 250):
        assert strided(f"row{row}", slice(row, row + 4)) != same
    assert strided("again") == same


def test_fingerprint_of_config_ignores_who_wrote_it(tmp_path):
    def config_print(config):
        save_single(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        return fingerprint(read_checkpoint(tmp_path))["config"]

    plain = config_print({"hidden_size": 8, "text": [{"dtype": "bfloat16"}]})
    noisy = {"text": [{"torch_dtype": "bfloat16", "_name_or_path": "x"}], "hidden_size": 8}
    assert config_print({"transformers_version": "5", **noisy}) == plain
    assert config_print({"hidden_size": 9, "text": [{"dtype": "bfloat16"}]}) != plain
    assert config_print({"hidden_size": 8, "text": [{"dtype": "float32"}]}) != plain


def test_fingerprint_refuses_a_config_that_is_no_json_and_a_file_cut_since(tmp_path):
    save_single(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert codes(refusal(fingerprint, checkpoint)) == ["M205"]
    (tmp_path / "config.json").unlink()
    os.truncate(tmp_path / WEIGHTS_NAME, 600)
    assert codes(refusal(fingerprint, checkpoint)) == ["M204"]
