"""What commands print, on 80 columns of a terminal and through a pipe: nothing lost or cut."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from surgery.cli import build_app
from surgery.cli.views import page, terminal
from surgery.cli.views.terminal import PlainConsole, plain_table, print_table
from surgery.lint.code_pages import all_pages, page_of, rule_pages
from surgery.model.source import BUILTIN_FOLDER
from surgery.recipe.recipe_file import packaged_recipes

ROOT = Path(__file__).parents[3]
ODD = "a [bold]b[/bold] [1,2] [/] :smile: {x}"
CODES = [*all_pages(), *rule_pages()]
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command in a pipe, with `COLUMNS` or without; return its stdout."""

    def run(*words: str, columns: int | None = None) -> str:
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", str(columns))
        terminal.out.cache_clear()
        terminal.err.cache_clear()
        result = CliRunner().invoke(build_app(), words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    yield run
    terminal.out.cache_clear()
    terminal.err.cache_clear()


def narrow() -> PlainConsole:
    """A terminal of 80 columns."""
    return PlainConsole(file=StringIO(), force_terminal=True, width=80, color_system=None)


def shown(console: PlainConsole) -> str:
    assert isinstance(console.file, StringIO)
    return re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", console.file.getvalue())


@pytest.mark.parametrize("code", ["P204", "L102", "routed-expert"])
def test_explain_in_a_pipe_is_the_page(code: str, run: Run) -> None:
    assert run("explain", code) == page_of(code)


def test_every_page_in_a_pipe_is_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for code in CODES:
        stream = StringIO()
        monkeypatch.setattr(page, "out", lambda to=stream: PlainConsole(file=to))
        page.print_page(page_of(code))
        assert stream.getvalue() == page_of(code)


@pytest.mark.parametrize("code", CODES)
def test_page_in_80_columns_breaks_no_word_and_no_code(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = narrow()
    monkeypatch.setattr(page, "out", lambda: console)
    page.print_page(page_of(code))
    text = shown(console)
    fences = re.findall(r"```\w*\n(.*?)```", page_of(code), re.DOTALL)
    lines = [line for fence in fences for line in fence.splitlines()]
    assert [line for line in lines if line.rstrip() not in text] == []
    prose = re.sub(r"```.*?```|[*|`]|\]\(.*?\)|^#+ |^\d+\. ", " ", page_of(code), flags=re.S | re.M)
    words = {word.strip("[]") for word in prose.split() if not set(word) <= set("-:")}
    assert [word for word in words if word not in text] == []


def test_table_in_80_columns_shows_every_cell_whole() -> None:
    table = plain_table("name", "size", "what", numbers=("size",), words=("what",))
    rows = [
        (f"name-{'x' * 30}{i}", f"{10**i} kB and more", f"some words and {'y' * 40}")
        for i in range(3)
    ]
    for row in rows:
        table.add_row(*row)
    console = narrow()
    print_table(table, console)
    for name, size, what in rows:
        assert name in shown(console)
        assert size in shown(console)
        assert all(word in shown(console).split() for word in what.split())


def test_table_that_fits_is_broken_between_words() -> None:
    table = plain_table("name", "what", words=("what",))
    table.add_row("n", "word " * 40)
    console = narrow()
    print_table(table, console)
    lines = shown(console).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split().count("word") == 40


LISTS = (
    ("recipes", "list"),
    ("targets", "list"),
    ("targets", "show", "snapdragon"),
    ("plan", "lora", "--train"),
    ("plan", "solar"),
    ("plan", "lora", "--deploy"),
    ("diff", "genieblue_skip", "lora"),
    ("inspect", "builtin/tiny-qwen2"),
    ("lint", "lora", "wings", "--fail-on", "error"),
)


@pytest.mark.parametrize("words", LISTS[:-1], ids=" ".join)
def test_what_is_piped_ends_no_line_in_spaces(words: tuple[str, ...], run: Run) -> None:
    text = run(*words)
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert "…" not in text


def test_columns_is_honored_in_a_pipe(run: Run) -> None:
    narrowed = run("targets", "list", columns=80)
    assert max(map(len, narrowed.splitlines())) <= 80
    wide = run("targets", "list")
    assert len(wide.splitlines()) < len(narrowed.splitlines())
    assert wide.split()[:4] == narrowed.split()[:4]


def test_brackets_of_the_user_stay(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(BUILTIN_FOLDER / "tiny-qwen2", tmp_path / "base[1] [red]x")
    Path("m.yaml").write_text(f'defaults: [lora, _self_]\ndescription: "{ODD}"\n')
    for words in (("plan", "m.yaml"), ("diff", "m.yaml", "genieblue_skip")):
        text = run(*words, f'model="{folder}"')
        assert words[0] == "diff" or folder.name in text
    assert folder.name in run("inspect", str(folder))
    assert "adapter[2]" in run("apply", "m.yaml", "--out", "adapter[2]")


def test_reporters_print_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgery.cli.views.recipes import print_recipes
    from surgery.recipe.schema import Recipe

    stream = StringIO()
    monkeypatch.setattr(terminal, "out", lambda: PlainConsole(file=stream, width=200))
    print_recipes([Recipe(name="x[1]", description=ODD, model="m", knobs={"a": "[b]"})])
    assert stream.getvalue().splitlines()[1].split() == ["x[1]", "a=[b]", *ODD.split()]


def test_nothing_goes_through_markup() -> None:
    """Consoles are made in one place, markup off; columns and spinners have their own switch."""
    for file in sorted((ROOT / "surgery").rglob("*.py")):
        code = file.read_text(encoding="utf-8")
        assert not re.search(r"rich\.markup|from_markup|\[/\w*\]", code), file
        assert file.name == "terminal.py" or not re.search(r"\bConsole\(", code), file
        for column in re.findall(r"TextColumn\(([^()]*)\)", code):
            assert "markup=False" in column, file
        for update in re.findall(r"status\.update\((\w+)", code):
            assert update == "Text", file


def helps() -> list[tuple[str, ...]]:
    top = typer.main.get_command(build_app())
    found: list[tuple[str, ...]] = []
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [(name, each) for each in inner] if inner else [(name,)]
    return found


@pytest.mark.parametrize("words", helps(), ids=" ".join)
def test_help_has_an_example_of_that_command(words: tuple[str, ...], run: Run) -> None:
    text = " ".join(run(*words, "--help", columns=80).split())
    assert f"Example: surgery {' '.join(words)}" in text


TEXTS = {
    ("explain",): "a page in Markdown",
    ("recipes", "show"): "a recipe as it is written",
    ("recipes", "copy"): "writes a file",
    ("samples",): "writes files",
    ("recipes", "schema"): "JSON already",
}
"""Commands whose result is a text of its own."""


@pytest.mark.parametrize("words", [w for w in helps() if w not in TEXTS], ids=" ".join)
def test_result_is_had_as_json(words: tuple[str, ...], run: Run) -> None:
    assert re.search(r"--format +<human\|json[|\w]*>", run(*words, "--help", columns=200))


def test_recipes_are_listed_as_json(run: Run) -> None:
    found = json.loads(run("recipes", "list", "--format", "json"))
    assert {*found} == {*packaged_recipes()}
    assert found["lora"] == {"description": "LoRA on every block", "knobs": {"rank": 8}}


def test_assembly_is_told_as_json(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("assemble", "sighted", "--out", "seeing", "--format", "json"))
    made = json.loads(Path("seeing/assembly.json").read_text())
    assert made.items() <= found.items()
    size = Path("seeing/model.safetensors").stat().st_size
    assert (found["folder"], found["bytes"]) == ("seeing", {"weights": size})
