"""The measures of taste of the design, over every file of the package."""

import ast
import configparser
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "surgery"
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft"}
VAGUE = re.compile(r"util|core|common|helper|misc|base|shared|tools?$")
LONGEST_FUNCTION, MEDIAN_FUNCTION, P90_FUNCTION = 60, 8, 30
LONGEST_FILE, MEDIAN_FILE = 300, 120
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions_of(file: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the end, the docstring's left out."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if text else 0
    return function.end_lineno - function.lineno + 1 - docstring


def lengths() -> list[int]:
    return sorted(length(function) for file in FILES for function in functions_of(file))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def public_nodes(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions and classes, and their public methods."""
    module = tree_of(file)
    yield "the module", module
    for node in module.body:
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            members = node.body if isinstance(node, ast.ClassDef) else []
            yield from (
                (f"{node.name}.{member.name}", member)
                for member in members
                if isinstance(member, Function) and not member.name.startswith("_")
            )


def floors() -> list[str]:
    """Lines of `.importlinter`, each the modules of one floor."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT.parent / ".importlinter")
    return contracts["importlinter:contract:floors"]["layers"].split("\n")


def light_modules() -> list[str]:
    """What must answer without torch: commands, reporters, and every floor below a live model."""
    lines = floors()
    first = next(i for i, line in enumerate(lines) if "surgery.paths.batch_rows" in line)
    below = lines[first + 1 :]
    names = [name.strip() for line in below for name in line.split("|") if name.strip()]
    return ["surgery.cli", "surgery.cli.views", *names]


def files_of(module: str) -> list[Path]:
    path = ROOT.parent / module.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported_at_top(file: Path) -> set[str]:
    """First names of the packages that importing the file imports; typing-only ones left out."""
    names: set[str] = set()
    for node in tree_of(file).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_file_is_short_and_well_named(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    assert not VAGUE.fullmatch(file.stem)
    assert not VAGUE.match(file.stem)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_functions_are_short(file: Path) -> None:
    long = {f.name: length(f) for f in functions_of(file) if length(f) > LONGEST_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_public_names_are_documented(file: Path) -> None:
    bare = [name for name, node in public_nodes(file) if not ast.get_docstring(node)]
    assert bare == []


def test_every_module_is_on_a_floor() -> None:
    listed = {name.strip() for line in floors() for name in re.split("[|:]", line)} - {""}
    files = {f"surgery.{file.stem}" for file in ROOT.glob("*.py") if "__" not in file.stem}
    folders = {f"surgery.{file.parent.name}" for file in ROOT.glob("*/__init__.py")}
    copied = "surgery.carried"
    assert listed == (files | folders) - {copied}


@pytest.mark.parametrize("module", light_modules())
def test_heavy_packages_are_not_imported_at_the_top(module: str) -> None:
    assert {name_of(f): imported_at_top(f) & HEAVY for f in files_of(module)} == {
        name_of(f): set() for f in files_of(module)
    }


def test_light_modules_load_without_heavy_packages() -> None:
    files = [file for module in light_modules() for file in files_of(module)]
    names = [".".join(f.relative_to(ROOT.parent).with_suffix("").parts) for f in files]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += f"print(sorted({HEAVY} & set(sys.modules)))"
    run = [sys.executable, "-c", code, *(name.removesuffix(".__init__") for name in names)]
    done = subprocess.run(run, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_typical_function_is_short() -> None:
    found = lengths()
    assert statistics.median(found) <= MEDIAN_FUNCTION
    assert found[int(0.9 * len(found))] <= P90_FUNCTION


def test_typical_file_is_short() -> None:
    found = [len(file.read_text(encoding="utf-8").splitlines()) for file in FILES]
    assert statistics.median(found) <= MEDIAN_FILE


def test_measures_see_what_they_measure(tmp_path: Path) -> None:
    file = tmp_path / "measured.py"
    body = "\n".join(f"    x = {i}" for i in range(70))
    file.write_text(f'import torch.nn\n\n\ndef bare(a):\n    """One\n    two."""\n{body}\n')
    file.write_text(file.read_text() + "\n\nclass Public:\n    def method(self):\n        pass\n")
    assert imported_at_top(file) == {"torch"}
    assert [length(function) for function in functions_of(file)] == [71, 2]
    assert [n for n, node in public_nodes(file) if not ast.get_docstring(node)] == [
        "the module",
        "Public",
        "Public.method",
    ]
