"""The sample files: what they are is what the commands take."""

import json
from pathlib import Path

import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from surgery.cli import build_app
from surgery.data.file_reader import DataFile
from surgery.data.samples.files import write_samples
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.recipe.training_schema import Source


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "here"
    write_samples(folder)
    return folder


def records(samples: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (samples / name).read_text().splitlines()]


def test_questions_are_records_whose_pictures_are_there(samples: Path) -> None:
    for name, count in (("talk.jsonl", 18), ("test.jsonl", 6)):
        found = list(DataFile(Source(file=str(samples / name))))
        assert len(found) == count
        assert all(len(record.images) == 1 for record in found)
        assert all((samples / row["image"]).is_file() for row in records(samples, name))


def test_no_picture_is_in_both_files(samples: Path) -> None:
    train, test = (
        {row["image"] for row in records(samples, name)} for name in ("talk.jsonl", "test.jsonl")
    )
    assert not train & test
    assert {f"photos/{file.name}" for file in (samples / "photos").iterdir()} == train | test


def test_pictures_show_what_their_names_say(samples: Path) -> None:
    red = Image.open(samples / "photos" / "red-square.png").convert("RGB")
    assert red.getpixel((32, 32)) == (214, 48, 49)
    assert red.getpixel((2, 2)) == (255, 255, 255)
    assert Image.open(samples / "cat.png").size == (64, 64)


def test_graph_is_valid_and_says_what_it_computes(samples: Path) -> None:
    model = onnx.load(samples / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("MatMul") == 3


def test_samples_are_the_same_each_time(samples: Path, tmp_path: Path) -> None:
    write_samples(tmp_path)
    files = [file for file in samples.rglob("*") if file.is_file()]
    assert len(files) == 17
    for file in files:
        assert file.read_bytes() == (tmp_path / file.relative_to(samples)).read_bytes()


def test_samples_may_be_written_again_and_what_is_absent_comes_back(tmp_path: Path) -> None:
    lines = write_samples(tmp_path)
    (tmp_path / "cat.png").unlink()
    (tmp_path / "photos" / "red-square.png").unlink()
    kept = (tmp_path / "talk.jsonl").stat().st_mtime_ns
    assert write_samples(tmp_path) == lines
    assert (tmp_path / "cat.png").is_file()
    assert (tmp_path / "photos" / "red-square.png").is_file()
    assert (tmp_path / "talk.jsonl").stat().st_mtime_ns == kept


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.jsonl").write_text("mine")
    with pytest.raises(SurgeryError) as caught:
        write_samples(tmp_path)
    assert caught.value.diagnostics[0].code == "A301"
    assert [file.name for file in tmp_path.iterdir()] == ["talk.jsonl"]
    run = CliRunner().invoke(build_app(), ["samples", "there"], catch_exceptions=False)
    assert "talk.jsonl: questions" in run.output
    assert (tmp_path / "there" / "photos").is_dir()
