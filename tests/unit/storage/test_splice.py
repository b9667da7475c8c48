"""Writing files and folders: what arrives, and what is left behind where it fails."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgery.diagnostics.diagnostic import EXIT_ENVIRONMENT, SurgeryError
from surgery.storage.claim import claimed, sibling_path
from surgery.storage.disk_errors import check_free_space, io_errors
from surgery.storage.inputs import Input, refuse_inputs
from surgery.storage.safetensors import direct_write as transfer
from surgery.storage.safetensors.checkpoint import read_header
from surgery.storage.safetensors.writer import (
    NewTensor,
    copy_file,
    file_size,
    layout,
    write_safetensors,
)
from surgery.storage.staging import claimed_output, staged_folder

ROOT = Path(__file__).parents[3]


def stored(file: Path, tensors: dict[str, torch.Tensor]):
    save_file(tensors, file)
    return read_header(file)


def copies(held) -> list[NewTensor]:
    return [NewTensor(t.name, t.dtype, t.shape, t) for t in held.values()]


def made(name: str, content: bytes) -> NewTensor:
    return NewTensor(name, "U8", (len(content),), lambda: content)


def refusal_code(call, *given) -> str:
    with pytest.raises(SurgeryError) as caught:
        call(*given)
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    return caught.value.diagnostics[0].code


@contextmanager
def unprivileged():
    """Root may write anywhere, so be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_written_file_opens_in_safetensors_bit_by_bit(tmp_path):
    tensors = {
        "half": torch.randn(33, 7).half(),
        "brain": torch.randn(1000, 3).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "long": torch.arange(9),
        "flags": torch.tensor([True, False, True]),
    }
    held = stored(tmp_path / "in", tensors)
    file = tmp_path / "out.safetensors"
    given = [*copies(held), NewTensor("made", "F32", (2,), lambda: b"\0\0\x80\x3f" * 2)]
    write_safetensors(file, given, {"format": "pt", "by": "surgery"})
    loaded = load_file(file)
    assert loaded.pop("made").tolist() == [1, 1]
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "by": "surgery"}


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("beyond", [-4097, -1, 0, 1, 4096])
def test_sizes_around_chunk_bounds_arrive_whole(tmp_path, chunks, beyond):
    count = chunks * transfer.CHUNK_BYTES - transfer.ALIGNMENT + beyond
    whole = torch.randint(256, (count,), dtype=torch.uint8)
    seen = []
    held = stored(tmp_path / "in", {"a": whole})
    write_safetensors(tmp_path / "out", copies(held), progress=seen.append)
    assert torch.equal(load_file(tmp_path / "out")["a"], whole)
    assert (tmp_path / "out").stat().st_size == 4096 + count == sum(seen)


def test_layout_pads_the_header_and_puts_wide_dtypes_first():
    specs = [("a", "U8", (3,)), ("b", "BF16", (2,)), ("c", "I64", ()), ("d", "BF16", (1,))]
    plan = layout(specs)
    assert len(plan.header) % 4096 == 0
    assert plan.order == (2, 1, 3, 0)
    assert plan.size == file_size(specs) == 4096 + 8 + 4 + 2 + 3
    assert file_size([]) == 4096


@pytest.mark.parametrize(
    "specs", [[("a", "F31", ())], [("a", "U8", ()), ("a", "U8", ())], [("__metadata__", "U8", ())]]
)
def test_layout_refuses_unknown_dtypes_and_names_given_twice(specs):
    with pytest.raises(ValueError, match=r"F31|twice"):
        layout(specs)


def test_new_tensor_refuses_a_source_of_another_shape(tmp_path):
    source = stored(tmp_path / "in", {"a": torch.zeros(2, 3)})["a"]
    assert NewTensor("b", "F32", (2, 3), source).nbytes == 24
    with pytest.raises(ValueError, match="its source 'a' is F32"):
        NewTensor("b", "F32", (3, 2), source)


def test_made_bytes_of_the_wrong_length_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="has 2 bytes, 3 were made"):
        write_safetensors(tmp_path / "out", [NewTensor("a", "U8", (2,), lambda: b"123")])
    assert not (tmp_path / "out").exists()


def test_neighbours_in_a_source_are_read_in_one_go(tmp_path, monkeypatch):
    held = stored(tmp_path / "in", {name: torch.randn(64) for name in "abcdef"})
    reads = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: reads.append(given[2]) or real(*given))
    write_safetensors(tmp_path / "out", copies(held))
    assert reads == [held["a"].offset]


def test_source_cut_since_its_header_was_read_is_refused(tmp_path):
    held = stored(tmp_path / "in", {"a": torch.zeros(100_000)})
    os.truncate(tmp_path / "in", 50_000)
    assert refusal_code(write_safetensors, tmp_path / "out", copies(held)) == "M204"
    (tmp_path / "in").unlink()
    assert refusal_code(write_safetensors, tmp_path / "out", copies(held)) == "M201"
    assert not (tmp_path / "out").exists()


def test_existing_files_are_never_written_through(tmp_path):
    held = stored(tmp_path / "in", {"a": torch.zeros(10)})
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = (tmp_path / "in").read_bytes()
    assert refusal_code(write_safetensors, tmp_path / "in", copies(held)) == "A301"
    assert refusal_code(write_safetensors, tmp_path / "link", copies(held)) == "A301"
    assert (tmp_path / "in").read_bytes() == before


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, (8 << 20) + 1])
def test_copied_file_has_the_same_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "in").write_bytes(content)
    seen = []
    copy_file(tmp_path / "in", tmp_path / "out", seen.append)
    assert (tmp_path / "out").read_bytes() == content
    assert sum(seen) == size


def test_copy_of_a_missing_file_is_refused(tmp_path):
    assert refusal_code(copy_file, tmp_path / "in", tmp_path / "out") == "M201"


def test_writes_are_direct_where_the_disk_allows(tmp_path):
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    changed = transfer._use_direct(descriptor, True)
    assert changed == bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))
    assert transfer._use_direct(descriptor, False) == changed
    os.close(descriptor)


def test_writes_are_plain_where_direct_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT")  # as on macOS
    content = os.urandom(10_000)
    write_safetensors(tmp_path / "out", [made("a", content)])
    assert bytes(load_file(tmp_path / "out")["a"].tolist()) == content


def test_writes_are_plain_where_direct_is_refused_later(tmp_path, monkeypatch):
    real, refused = os.pwrite, []

    def pwrite(descriptor, *given):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, *given)

    monkeypatch.setattr(os, "pwrite", pwrite)
    content = os.urandom(20 << 20)
    write_safetensors(tmp_path / "out", [made("a", content)])
    assert refused
    assert (tmp_path / "out").read_bytes()[4096:] == content


def test_every_writer_may_be_refused_direct_writes_at_once(tmp_path, monkeypatch):
    real, refused = os.pwrite, set()

    def pwrite(descriptor, data, at):
        if at not in refused:  # sent while the flag was on, answered when another had turned it off
            refused.add(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    content = os.urandom(20 << 20)
    write_safetensors(tmp_path / "out", [made("a", content)])
    assert len(refused) > 1
    assert (tmp_path / "out").read_bytes()[4096:] == content


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: 512 * 1000], at))
    content = os.urandom(20 << 20)
    write_safetensors(tmp_path / "out", [made("a", content)])
    assert (tmp_path / "out").read_bytes()[4096:] == content


def test_full_disk_is_an_error_before_anything_is_written(tmp_path):
    huge = NewTensor("a", "U8", (1 << 60,), lambda: pytest.fail("was asked for bytes"))
    with pytest.raises(SurgeryError, match="1,152,921,504,606,851,072 bytes are needed") as caught:
        write_safetensors(tmp_path / "out", [huge])
    assert caught.value.diagnostics[0].code == "A302"
    assert "are free" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert refusal_code(check_free_space, tmp_path / "not" / "yet", 1 << 60) == "A302"


def test_full_disk_is_an_error_when_a_write_fails(tmp_path, monkeypatch):
    real, out = os.open, tmp_path / "out"

    def full(path, flags, *mode):
        return real("/dev/full", os.O_WRONLY) if path == out else real(path, flags, *mode)

    monkeypatch.setattr(os, "open", full)
    assert refusal_code(write_safetensors, out, [made("a", bytes(30 << 20))]) == "A302"


def test_full_disk_leaves_no_file(small_disk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 60))
    out = small_disk / "out"
    assert refusal_code(write_safetensors, out, [made("a", bytes(30 << 20))]) == "A302"
    assert list(small_disk.iterdir()) == []


def test_full_disk_in_a_staged_folder_leaves_nothing(small_disk):
    def write():
        with staged_folder(small_disk / "out") as folder:
            (folder / "a").write_bytes(bytes(3 << 20))
            (folder / "b").write_bytes(bytes(3 << 20))

    assert refusal_code(write) == "A302"
    assert list(small_disk.iterdir()) == []


def test_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with unprivileged():
        assert refusal_code(write_safetensors, tmp_path / "out", [made("a", b"1")]) == "A303"
        assert refusal_code(staged_folder(tmp_path / "o" / "p").__enter__) == "A303"
    tmp_path.chmod(0o755)


def test_missing_folder_is_refused(tmp_path):
    assert refusal_code(write_safetensors, tmp_path / "no" / "out", [made("a", b"1")]) == "A304"


@pytest.mark.parametrize(
    ("number", "code"),
    [("ENOSPC", "A302"), ("EDQUOT", "A302"), ("EROFS", "A303"), ("EPERM", "A303"), ("EIO", "A304")],
)
def test_io_errors_have_codes(tmp_path, number, code):
    def fail():
        with io_errors(tmp_path / "x", 10):
            raise OSError(getattr(errno, number), "said the kernel")

    assert refusal_code(fail) == code


def test_io_errors_lets_errors_of_libraries_pass(tmp_path):
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    for error in (OSError("no such model on the hub"), refused, RuntimeError("no image")):
        with pytest.raises(type(error), match=r"no|refused"), io_errors(tmp_path):
            raise error


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_full_disk_in_a_library_is_an_error_too(small_disk, save, monkeypatch):
    def write():
        with io_errors(small_disk / "x"):
            save({"a": torch.zeros(3 << 20)}, small_disk / "x")

    assert refusal_code(write) == "A302"


def test_staged_folder_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as folder:
        assert folder.parent == out.parent
        assert folder.name == ".out.partial"
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not out.exists()
    assert (out / "sub" / "a").read_text() == "1"
    assert os.listdir(out.parent) == ["out"]


def test_staged_folder_takes_an_empty_folder_and_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with staged_folder(tmp_path / "link") as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_staged_folder_leaves_nothing_when_interrupted(tmp_path, error):
    def write():
        with staged_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_staged_folder_refuses_what_is_there(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert refusal_code(staged_folder(tmp_path / "file").__enter__) == "A301"
    assert refusal_code(staged_folder(tmp_path / "file", overwrite=True).__enter__) == "A301"
    assert refusal_code(staged_folder(tmp_path / "full").__enter__) == "A301"
    assert refusal_code(staged_folder(tmp_path / "full", overwrite=True).__enter__) == "A305"
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def written_before(out: Path) -> Path:
    out.mkdir()
    (out / "plan.json").write_text("old")
    return out


def test_staged_folder_overwrites_what_surgery_wrote(tmp_path):
    out = written_before(tmp_path / "out")
    with staged_folder(out, overwrite=True) as folder:
        (folder / "plan.json").write_text("new")
        assert (out / "plan.json").read_text() == "old"
    assert (out / "plan.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_staged_folder_keeps_the_old_when_the_rename_fails(tmp_path, monkeypatch):
    out = written_before(tmp_path / "out")
    real = Path.rename

    def rename(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)

    def overwrite():
        with staged_folder(out, overwrite=True) as folder:
            (folder / "plan.json").write_text("new")

    assert refusal_code(overwrite) == "A304"
    assert (out / "plan.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_staged_folder_keeps_what_appeared_meanwhile(tmp_path):
    def write(overwrite=False):
        with staged_folder(tmp_path / "out", overwrite=overwrite) as folder:
            (folder / "plan.json").touch()
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "thesis.txt").touch()

    assert refusal_code(write) == "A301"
    shutil.rmtree(tmp_path / "out")
    assert refusal_code(write, True) == "A301"
    (tmp_path / "out" / "thesis.txt").unlink()
    (tmp_path / "out" / "plan.json").touch()
    assert refusal_code(write, True) == "A308"
    assert sorted(os.listdir(tmp_path / "out")) == ["plan.json", "thesis.txt"]
    assert os.listdir(tmp_path) == ["out"]


def test_staged_folder_replaces_only_the_folder_that_it_saw(tmp_path):
    """A new folder may have the inode of the one that was removed."""
    written_before(tmp_path / "out")

    def write():
        with staged_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "plan.json").touch()
            shutil.rmtree(tmp_path / "out")
            (written_before(tmp_path / "out") / "thesis.txt").touch()

    assert refusal_code(write) == "A308"
    assert sorted(os.listdir(tmp_path / "out")) == ["plan.json", "thesis.txt"]


def test_staged_folder_takes_the_path_of_one_removed_meanwhile(tmp_path):
    out = written_before(tmp_path / "out")
    with staged_folder(out, overwrite=True) as folder:
        (folder / "plan.json").write_text("new")
        shutil.rmtree(out)
    assert (out / "plan.json").read_text() == "new"


def test_of_two_runs_the_second_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
        again = in_a_thread(staged_folder(tmp_path / "link" / "out", overwrite=True).__enter__)
        assert again.diagnostics[0].code == "A307"
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


def in_a_thread(call):
    """What a call raises in a thread, whose claims are its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).exception()


def test_names_as_long_as_they_may_be(tmp_path):
    out = tmp_path / ("x" * 255)
    with staged_folder(out) as folder:
        (folder / "a").touch()
    assert (out / "a").exists()
    assert os.listdir(tmp_path) == [out.name]
    assert refusal_code(staged_folder(tmp_path / ("x" * 256)).__enter__) == "A304"
    assert refusal_code(staged_folder(tmp_path / "/".join(["x"] * 3000)).__enter__) == "A304"


def test_folders_around_an_output_go_with_what_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "a" / "b" / "out"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with staged_folder(tmp_path / "a" / "b" / "out"):
        pass
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_staged_folder_tidies_after_killed_runs_alone(tmp_path):
    ours = [".out.partial", ".out.replaced", ".out.partial-1-00000000", ".out.lock"]
    others = [".other.partial", ".out.partial-notes", ".out.partial-1"]
    for name in (*ours, *others):
        (tmp_path / name).mkdir() if name != ".out.lock" else (tmp_path / name).touch()
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    left = set(os.listdir(tmp_path))
    assert left - {name for name in left if ".before-" in name} == {*others, "out"}


@pytest.mark.parametrize("name", [".out.replaced", ".out.replaced-1-00000000"])
def test_staged_folder_brings_back_what_a_killed_overwrite_put_aside(tmp_path, name):
    aside = written_before(tmp_path / name)
    (tmp_path / ".out.partial").mkdir()
    assert refusal_code(staged_folder(tmp_path / "out").__enter__) == "A301"
    assert (tmp_path / "out" / "plan.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
    assert not aside.exists()


def test_staged_folder_clears_what_is_superseded_and_nothing_else(tmp_path):
    """Killed after the new folder was whole; and before, when somebody else had made one."""
    written_before(tmp_path / "out")
    written_before(tmp_path / ".out.replaced")
    assert refusal_code(staged_folder(tmp_path / "out").__enter__) == "A301"
    assert os.listdir(tmp_path) == ["out"]
    written_before(tmp_path / ".out.replaced")
    (tmp_path / ".out.partial").mkdir()
    with staged_folder(tmp_path / "out", overwrite=True):
        pass
    out, previous = sorted(os.listdir(tmp_path))
    assert out == "out"
    assert previous.startswith("out.before-")
    assert (tmp_path / previous / "plan.json").exists()


def test_disk_without_locks_has_unfinished_work_as_its_claim(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
        refused = in_a_thread(staged_folder(tmp_path / "out").__enter__)
        assert refused.diagnostics[0].code == "A307"
        assert str(folder) in refused.diagnostics[0].fix
    assert (tmp_path / "out" / "a").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_that_its_last_owner_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    lock, tries, real = tmp_path / ".out.lock", [], fcntl.flock

    def late(descriptor, how):
        if not tries:
            lock.unlink()  # as another run does, which ends between our opening and locking it
        tries.append(descriptor)
        return real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(tmp_path / "out") as is_locked:
        assert is_locked
        assert lock.exists()
    assert len(tries) == 2


def test_who_has_a_claim_may_claim_the_same_again(tmp_path):
    out = tmp_path / "out"
    with claimed_output(out, ()), staged_folder(out) as folder:
        (folder / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_the_root_has_no_sibling_path():
    with pytest.raises(SurgeryError, match="A301"):
        sibling_path(Path("/"), ".{}.lock")


# --- outputs that would harm what is read ---------------------------------------------------------


@pytest.fixture
def read(tmp_path):
    """A model, links to it and in it, and a file of data beside it."""
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "weights").touch()
    (tmp_path / "models" / "base" / "weights").symlink_to(tmp_path / "store" / "weights")
    (tmp_path / "link").symlink_to("models/base")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "talk.jsonl").touch()
    data = Input(tmp_path / "data" / "talk.jsonl", "the data")
    pictures = Input(tmp_path / "data", "the pictures", open=True)
    return [Input(tmp_path / "link", "the base"), data, pictures]


@pytest.mark.parametrize(
    "out",
    [
        "models/base", "models/base/", "link", "models/../models/base", "models", ".", "link/new",
        "models/base/new/deep", "store", "data", "data/talk.jsonl",
    ],
)  # fmt: skip
def test_output_that_is_contains_or_is_inside_an_input_is_refused(tmp_path, read, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for output in (Path(out), tmp_path / out):
        with pytest.raises(SurgeryError, match="A306"):
            refuse_inputs(output, read)
        with pytest.raises(SurgeryError, match="A306"):
            staged_folder(output, overwrite=True, inputs=read).__enter__()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["new", "models/new", "models/basement", "data/new", "store/new"])
def test_output_next_to_an_input_is_not_refused(tmp_path, read, out):
    refuse_inputs(tmp_path / out, read)


def test_the_folder_of_a_link_to_an_input_is_no_output(tmp_path, read):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "base").symlink_to(tmp_path / "models" / "base")
    with pytest.raises(SurgeryError, match=r"shelf` holds the base"):
        refuse_inputs(tmp_path / "shelf", [Input(tmp_path / "shelf" / "base", "the base")])


def test_an_input_that_is_not_there_refuses_nothing(tmp_path, read):
    absent = Input(tmp_path / "models" / "hub-id", "the base")
    refuse_inputs(tmp_path / "models" / "new", [absent])


def test_case_of_letters_makes_no_difference(tmp_path, read, monkeypatch):
    """As on a disk that ignores it, where both names have one inode."""
    real = os.stat

    def folded(path, *rest, **options):
        return real(str(path).replace("MODELS/Base", "models/base"), *rest, **options)

    monkeypatch.setattr(os, "stat", folded)
    with pytest.raises(SurgeryError, match="A306"):
        refuse_inputs(tmp_path / "MODELS" / "Base", read)


WRITER = """
import signal, sys, time
from pathlib import Path
from surgery.storage.safetensors.checkpoint import read_header
from surgery.storage.safetensors.writer import NewTensor, write_safetensors
from surgery.storage.staging import staged_folder

def stop(*_):
    raise SystemExit(143)

signal.signal(signal.SIGTERM, stop)
source, out = map(Path, sys.argv[1:])
tensors = [NewTensor(t.name, t.dtype, t.shape, t) for t in read_header(source).values()]
def wait(n):
    print(n, flush=True)
    time.sleep(999)  # until it is killed

with staged_folder(out) as folder:
    write_safetensors(folder / "a", tensors, progress=wait)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_killed_writer_leaves_no_output(tmp_path, sent):
    stored(tmp_path / "in", {"a": torch.zeros(20 << 20)})
    out = tmp_path / "out"
    command = [sys.executable, "-c", WRITER, str(tmp_path / "in"), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout.readline()
        child.send_signal(sent)
    assert not out.exists()
    left = [name for name in os.listdir(tmp_path) if name != "in"]
    assert sorted(left) == ([".out.lock", ".out.partial"] if sent == signal.SIGKILL else [])
    with staged_folder(out):
        pass
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


SLIM = """
import re, sys
from pathlib import Path
from surgery.storage.safetensors.checkpoint import read_header
from surgery.storage.safetensors.writer import NewTensor, write_safetensors
source, out = map(Path, sys.argv[1:])
tensors = [NewTensor(t.name, t.dtype, t.shape, t) for t in read_header(source).values()]
write_safetensors(out, tensors)
heavy = {"torch", "numpy", "pydantic", "transformers"} & sys.modules.keys()
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], *heavy)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writer_stays_under_60_mb_and_imports_nothing_heavy(tmp_path):
    size = 256 << 20
    plan = layout([("a", "U8", (size,))])
    (tmp_path / "in").write_bytes(plan.header)
    os.truncate(tmp_path / "in", plan.size)
    command = [sys.executable, "-c", SLIM, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    peak, *heavy = done.stdout.split()
    assert heavy == []
    assert int(peak) * 1024 < 60e6
