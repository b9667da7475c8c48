"""Every command and every snippet of the pages runs as it is typed, in the order of its page.

Each page has a folder of its own, and nothing in it but what the page's own commands write.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from surgery.cli import build_app
from surgery.data.samples.files import write_samples
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.source import find_model

ROOT = Path(__file__).parents[2]
HOW_TOS = sorted(f"how-to/{file.name}" for file in (ROOT / "docs/how-to").glob("*.md"))
PAGES = ("index.md", "tutorial.md", *HOW_TOS)
LONG = (
    "index.md",
    *(
        f"how-to/{name}.md"
        for name in ("assemble", "experts", "export", "llama-cpp", "onnxruntime-genai", "vllm")
    ),
)
"""Pages that verify or export much; `make test-all` runs them."""
BLOCK = re.compile(r"```(console|python|yaml)\n(.*?)```", re.DOTALL)
HUB = {
    "Qwen/Qwen2.5-3B": "builtin/qwen2.5-3b",
    "google/siglip-so400m-patch14-384": "builtin/siglip-so400m-patch14-384",
}
"""Shapes that stand for models of the hub, which isn't asked here."""
ELSEWHERE = {
    "pip install": "needs the network",
    "make study": "tests/e2e/test_study.py",
    "lm_eval": "tests/e2e/test_evaluate.py",
    "accelerate launch": "tests/e2e/test_train.py",
    "python -m surgery.sweep": "tests/e2e/test_sweep.py",
    "echo $?": "the shell's",
    "--to qnn": "tests/unit/export/test_export_qnn.py",
    "my-binaries": "tests/unit/export/test_export_qnn.py",
    "--to executorch": "tests/unit/export/test_export_executorch.py",
    "my-programs": "tests/unit/export/test_export_executorch.py",
    "executorch.extension": "tests/unit/export/test_export_executorch.py",
    "folder/of/safetensors": "tests/unit/layers/test_expert.py",
    "vision_expert_query": "tests/unit/layers/test_expert.py",
}
"""What is run by another test, or by none, and why."""
_TOKENIZER = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from surgery import find_model
home = find_model("builtin/tiny-qwen2").folder
tokenizer = AutoTokenizer.from_pretrained(home)
inputs = tokenizer(["A list is"], return_tensors="pt")
"""
BEFORE = {
    "README.md": _TOKENIZER + "batch = tokenizer(['A list is'] * 2, return_tensors='pt')\n",
    "how-to/python.md": _TOKENIZER,
    "how-to/peft.md": _TOKENIZER
    + "base = AutoModelForCausalLM.from_pretrained(home)\n"
    + "answer, prompt = print, 'A list is'\n",
    "how-to/train.md": _TOKENIZER + "batches = [{**inputs, 'labels': inputs['input_ids']}] * 2\n",
    "how-to/assemble.md": "from PIL import Image\npicture = Image.open('cat.png')\n",
    "how-to/experts.md": _TOKENIZER
    + "ids = inputs['input_ids']\nmask = torch.zeros_like(ids, dtype=torch.bool)\n"
    + "mask[:, 1] = True\n",
}
"""What a reader has at hand where a page's snippets begin."""


def page_text(page: str) -> str:
    file = ROOT / page if page == "README.md" else ROOT / "docs" / page
    return file.read_text(encoding="utf-8")


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a block, and what is shown under it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command.split("  #")[0].strip(), shown


def elsewhere(text: str) -> bool:
    return any(words in text for words in ELSEWHERE)


def typed(command: str) -> list[str]:
    """The words behind `surgery`; a command that would download plans on the same shape instead."""
    words = shlex.split(command)
    assert words[0] == "surgery", f"who runs `{command}`?"
    if not any(name in command for name in HUB):
        return words[1:]
    for name, shape in HUB.items():
        words = [word.replace(name, shape) for word in words]
    if words[1] not in ("apply", "assemble"):
        return words[1:]
    return ["plan", *(word for word in words[2:] if "=" in word or word == words[2])]


def run(command: str, shown: str) -> None:
    words = typed(command)
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
        Path(target).write_text(invoked(words, shown).stdout)
    else:
        invoked(words, shown)


def invoked(words: list[str], shown: str) -> Any:
    result = CliRunner().invoke(build_app(), words)
    if isinstance(result.exception, SurgeryError):
        assert "error[" in shown, f"{words}\n{result.exception}"
        codes = [diagnostic.code for diagnostic in result.exception.diagnostics]
        assert f"error[{codes[0]}]" in shown
    else:
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        assert result.exit_code <= (words[0] in ("lint", "sweep")), f"{words}\n{result.output}"
    return result


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] * (p in LONG)) for p in PAGES]
)
def test_page_runs_as_typed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "cat.png" in BEFORE.get(page, ""):
        write_samples(tmp_path)
    names: dict[str, Any] = {}
    for kind, block in BLOCK.findall(page_text(page)):
        if kind == "python" and not elsewhere(block):
            if not names:
                exec(BEFORE.get(page, "pass"), names)
            exec(block, names)
        elif kind == "yaml" and re.match(r"# (\w+\.yaml)\n", block):
            Path(block.split()[1]).write_text(block)
        elif kind == "console":
            for command, shown in commands(block):
                if not elsewhere(command):
                    run(command, shown)


def test_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("surgery apply genieblue_skip --out my-adapter", "")
    names: dict[str, Any] = {}
    exec(BEFORE["README.md"], names)
    for kind, block in BLOCK.findall(page_text("README.md")):
        if kind == "python":
            exec(block, names)


def test_each_exception_is_for_something() -> None:
    text = "".join(page_text(page) for page in PAGES)
    assert [words for words in ELSEWHERE if words not in text] == []
    assert find_model("builtin/qwen2.5-3b").folder.is_dir()
