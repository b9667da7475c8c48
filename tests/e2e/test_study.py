"""The study runs whole: data, alignment, sweeps, figures, report; what must be exact is exact.

`--quick` is as a user runs it, once for all that is checked of it. How good the answers are is
compared with who sees no picture.
"""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
NEEDED = ("joblib", "markdown_it", "matplotlib", "sklearn")
LACKING = [name for name in NEEDED if not importlib.util.find_spec(name)]
HAVE_TEXT_PATH = ("cogvlm_skip", "genieblue_skip")
CLEARLY = 5  # percentage points

pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    path = os.pathsep.join([str(SCRIPTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "study", "--quick", "--out", str(out)],
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return out


def scores(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "scores.json").read_text()))


@pytest.mark.slow
def test_quick_study_is_whole_and_its_text_path_the_base(folder: Path) -> None:
    check_text_path_is_the_base_to_the_last_bit(folder)
    check_training_changed_the_shared_path(folder)
    check_full_finetuning_sees(folder)
    check_report_is_whole(folder)


def check_text_path_is_the_base_to_the_last_bit(folder: Path) -> None:
    runs = scores(folder)["runs"]
    exact = {run["recipe"] for run in runs if "text" in run["perplexity"]}
    assert exact == set(HAVE_TEXT_PATH)
    for run in runs:
        if run["recipe"] in exact:
            assert run["perplexity"]["text"] == run["perplexity"]["base"]
            assert run["retention"]["text"] == 100
    assert len({run["perplexity"]["base"] for run in runs}) == 1


def check_training_changed_the_shared_path(folder: Path) -> None:
    for run in scores(folder)["runs"]:
        assert run["perplexity"]["shared"] != run["perplexity"]["base"]


def check_full_finetuning_sees(folder: Path) -> None:
    document = scores(folder)
    blind = 100 * sum(document["blind"].values()) / len(document["blind"])
    full = next(run for run in document["runs"] if run["recipe"] == "full_finetune")
    assert full["answers"] > blind + CLEARLY


def check_report_is_whole(folder: Path) -> None:
    runs = scores(folder)["runs"]
    with (folder / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["recipe"] for row in rows] == [run["recipe"] for run in runs]
    for row, run in zip(rows, runs, strict=True):
        assert float(row["perplexity.shared"]) == run["perplexity"]["shared"]
    text = (folder / "report.md").read_text()
    page = (folder / "index.html").read_text()
    for run in runs:
        assert f"{run['trainable']:,}" in text
        assert f"{run['trainable']:,}" in page
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in page
    assert "One seed has no spread" in text


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.usefixtures("study")
def test_no_picture_is_in_both_splits() -> None:
    from study.pictures import TEST, TRAINING, make_pictures

    splits = make_pictures(16, 50)
    assert len(splits[TEST].digits) == 100
    one = {name: {a.tobytes() for a in splits[name].arrays} for name in (TRAINING, TEST)}
    assert not one[TRAINING] & one[TEST]


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(
    ("kind", "digits", "answer"),
    [
        ("digit", (7,), "7"),
        ("parity", (0,), "even"),
        ("parity", (3,), "odd"),
        ("larger", (9,), "yes"),
        ("larger", (0,), "no"),
        ("left", (4, 9), "4"),
        ("right", (4, 9), "9"),
        ("side", (4, 9), "right"),
        ("side", (9, 4), "left"),
        ("side", (5, 5), "none"),
    ],
)
def test_answer(kind: str, digits: tuple[int, ...], answer: str) -> None:
    import numpy as np
    from study.pictures import KINDS

    count, ask = KINDS[kind]
    assert count == len(digits)
    assert ask(digits, np.random.default_rng(0))[1] == answer


@pytest.mark.usefixtures("study")
def test_ranges_that_touch_are_in_doubt() -> None:
    from study.summary import Figure

    assert Figure((1.0, 2.0)).differs(Figure((2.1, 3.0)))
    assert not Figure((1.0, 2.1)).differs(Figure((2.1, 3.0)))
    assert not Figure((1.0,)).differs(Figure((9.0,)))


@pytest.mark.usefixtures("study")
def test_plot_gives_each_recipe_one_color_of_its_own() -> None:
    from study.plot import _colors
    from study.summary import Figure, Row

    nothing = Figure((0.0,))
    rest = (1, *[nothing] * 4, {}, [])
    recipes = [f"recipe_{n}" for n in range(12)]
    rows = [Row(name, mixed, *rest) for mixed in (False, True) for name in recipes]
    for count in (9, 12):
        colors = _colors(rows[:count])
        assert len({*colors.values()}) == len(colors) == count
    assert list(_colors(rows)) == recipes
