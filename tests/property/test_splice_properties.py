"""Any tensors, any order, any chunk size: the bytes arrive, and the size was foretold.

The other side is the `safetensors` library, which shares no code with ours.
"""

import json
import math
import tempfile
from pathlib import Path
from unittest.mock import patch

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.safetensors import direct_write as transfer
from surgery.storage.safetensors.checkpoint import (
    INDEX_NAME,
    fingerprint,
    read_checkpoint,
    read_header,
)
from surgery.storage.safetensors.dtypes import DTYPE_BYTES
from surgery.storage.safetensors.writer import NewTensor, copy_file, file_size, write_safetensors

DTYPES = ["BF16", "F16", "F32", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
DAMAGE = [b"9" * 30, b"0", b"-", b"1.5", b"null", b"[", b"]", b"{}", b"F4", b'"', b"\\ud800"]
CHUNKS = st.sampled_from([4096, 8192, 12288, 1 << 20])
fast = settings(deadline=None, max_examples=40)


@st.composite
def contents(draw):
    """Name to (dtype, shape, bytes)."""
    names = draw(st.lists(NAMES, unique=True, max_size=8))
    drawn = {}
    for name in names:
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        data = draw(st.randoms(use_true_random=False)).randbytes(nbytes)
        drawn[name] = dtype, shape, bytes(b & 1 for b in data) if dtype == "BOOL" else data
    return drawn


def library_read(file: Path):
    pairs = safetensors.deserialize(file.read_bytes())
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in pairs}


def makers(drawn) -> list[NewTensor]:
    return [NewTensor(n, d, s, lambda data=data: data) for n, (d, s, data) in drawn.items()]


def specs(drawn):
    return [(name, dtype, shape) for name, (dtype, shape, _) in drawn.items()]


@given(drawn=contents(), chunk=CHUNKS, metadata=st.dictionaries(NAMES, NAMES, max_size=3))
@fast
def test_library_reads_what_was_written(drawn, chunk, metadata):
    with tempfile.TemporaryDirectory() as folder, patch.object(transfer, "CHUNK_BYTES", chunk):
        file = Path(folder, "f")
        write_safetensors(file, makers(drawn), metadata)
        assert library_read(file) == drawn
        assert file.stat().st_size == file_size(specs(drawn), metadata)
        assert load_file(file).keys() == drawn.keys()
        for place in read_header(file).values():
            assert place.offset % DTYPE_BYTES[place.dtype] == 0


@given(drawn=contents(), chunk=CHUNKS, data=st.data())
@fast
def test_ranges_arrive_in_any_order_and_number(drawn, chunk, data):
    with tempfile.TemporaryDirectory() as folder, patch.object(transfer, "CHUNK_BYTES", chunk):
        first, second = Path(folder, "1"), Path(folder, "2")
        write_safetensors(first, makers(drawn))
        headers = read_header(first)
        picks = (
            data.draw(st.lists(st.sampled_from(sorted(headers)), max_size=12)) if headers else []
        )
        chosen = [headers[name] for name in picks]
        new = [NewTensor(f"{i} {t.name}", t.dtype, t.shape, t) for i, t in enumerate(chosen)]
        write_safetensors(second, new)
        expected = {f"{i} {name}": drawn[name] for i, name in enumerate(picks)}
        assert library_read(second) == expected


@given(drawn=contents(), data=st.data())
@fast
def test_fingerprint_is_the_same_for_any_sharding(drawn, data):
    with tempfile.TemporaryDirectory() as folder:
        seen = []
        for form in ("one", "two"):
            place = Path(folder, form)
            place.mkdir()
            shards: dict[str, list[NewTensor]] = {}
            for tensor in data.draw(st.permutations(makers(drawn))):
                shards.setdefault(f"m-{data.draw(st.integers(0, 3))}", []).append(tensor)
            for shard, tensors in shards.items():
                write_safetensors(place / shard, tensors)
            listed = {t.name: shard for shard, tensors in shards.items() for t in tensors}
            (place / INDEX_NAME).write_text(json.dumps({"weight_map": listed}))
            if not listed:
                return
            seen.append(fingerprint(read_checkpoint(place), checksum=True))
        assert seen[0] == seen[1]


@given(drawn=contents(), data=st.data())
@fast
def test_damaged_files_are_read_as_the_library_reads_them_or_refused(drawn, data):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "f")
        write_safetensors(file, makers(drawn))
        content = bytearray(file.read_bytes())
        text = len(content[: content.rindex(b"}", 0, 4096 if drawn else None) + 1])
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, text))
            damage = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from(DAMAGE)))
            content[at : at + data.draw(st.integers(0, 3))] = damage
        content = content[: data.draw(st.sampled_from([len(content), len(content) - 1]))]
        file.write_bytes(content)
        try:
            headers = read_header(file)
        except SurgeryError:
            return
        read = library_read(file)
        assert {n: (t.dtype, t.shape) for n, t in headers.items()} == {
            n: (dtype, shape) for n, (dtype, shape, _) in read.items()
        }


@given(
    data=st.integers(0, 40_000).flatmap(lambda n: st.randoms().map(lambda r: r.randbytes(n))),
    chunk=CHUNKS,
)
@fast
def test_files_are_copied_whole(data, chunk):
    with tempfile.TemporaryDirectory() as folder, patch.object(transfer, "CHUNK_BYTES", chunk):
        Path(folder, "1").write_bytes(data)
        seen: list[int] = []
        copy_file(Path(folder, "1"), Path(folder, "2"), seen.append)
        assert Path(folder, "2").read_bytes() == data
        assert sum(seen) == len(data)
