"""The exit code of a command follows from what is wrong, by the one rule that its page states."""

import re
from pathlib import Path

import pytest

from surgery import cli as commands
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

ROOT = Path(__file__).parents[3]
ABSENT = {
    "plan nofile.yaml": 2,
    "plan nofolder": 2,
    "plan lora model=./nofolder": 3,
    "plan lora vision=./nofolder": 3,
    "diff lora nofile": 2,
    "inspect ./nofolder": 3,
    "apply nofile.json": 3,
    "lint nofile.onnx": 3,
    "lint lora --target nofile.yaml": 2,
    "targets show nofile": 2,
    "recipes show nofile": 2,
    "recipes copy lora /nowhere/x.yaml": 3,
    "explain Z999": 2,
    "verify nofolder": 3,
    "evaluate nofolder": 3,
    "export nofolder": 3,
    "run nofolder --path text --prompt x": 3,
    "train nofile data=x.jsonl": 2,
    "train lora data=nofile.jsonl steps=1": 3,
    "sweep lora rank=4 --launcher nolauncher": 2,
    "plan lora --format xml": 2,
    "nonsense": 2,
}


@pytest.mark.parametrize("words", ABSENT)
def test_what_is_not_there_counts_as_what_it_would_be(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["surgery", *words.split()])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == ABSENT[words]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_page_of_commands_states_the_rule() -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE))
    assert set(stated) == {"0", "1", "2", "3", "70", "130"}
    for letters, code in (("RPTD", 2), ("MAX", 3), ("VL", 1)):
        errors = [SurgeryError(Diagnostic(f"{letter}199", "x")) for letter in letters]
        assert {error.exit_code for error in errors} == {code}
        assert f"{', '.join(letters[:-1])} and {letters[-1]} are {code}" in " ".join(page.split())
