"""What every test shares: no network, no color, one width, and a cache of the session's own."""

import atexit
import difflib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_MINE = "SURGERY_TEST_CACHE" not in os.environ  # workers of xdist inherit the session's
_CACHE = os.environ.setdefault("SURGERY_TEST_CACHE", tempfile.mkdtemp() if _MINE else "")
if _MINE:
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:  # workers with many threads each wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {
    "SURGERY_CACHE": _CACHE,
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "100",
    "TERM": "dumb",
}
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="Rewrite tests/golden; look at the diff."
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    """Make what was captured fit to be sent between xdist's processes, lone surrogates and all."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other's threads where the machine is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with a file of tests/golden, or rewrite it with `--update-golden`."""

    def compare(name: str, text: str) -> None:
        file = GOLDEN / name
        if request.config.getoption("--update-golden"):
            file.write_text(text, encoding="utf-8")
            return
        assert file.exists(), f"{name} is missing; make it with `pytest --update-golden`"
        expected = file.read_text(encoding="utf-8")
        if text != expected:
            lines = expected.splitlines(), text.splitlines()
            difference = "\n".join(difflib.unified_diff(*lines, name, "now", lineterm="", n=1))
            pytest.fail(f"{difference}\nif that is meant: pytest --update-golden", pytrace=False)

    return compare


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = shutil.which("mount") and subprocess.run(command, check=False, capture_output=True)
    if not done or done.returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
