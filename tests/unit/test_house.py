"""What the design promises of the package as one; `.importlinter` holds the rest."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "surgery"
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "onnx", "onnx_ir", "onnxruntime"}
LIGHT = ("diagnostics", "storage", "recipe", "operations", "plan", "sweep", "cli")
PLUGINS = (
    "cli/commands",
    "cli/views",
    "data/formats",
    "export/formats",
    "lint/rules/compiler",
    "lint/rules/graph",
    "lint/rules/plan",
    "model/remote_models",
    "operations",
    "runtime/formats",
    "verification/checks",
    "vision/projectors",
)
"""Folders in which one file adds one thing."""
MOST_FILES, MOST_OF_A_PREFIX, LONGEST_FUNCTION = 12, 2, 60
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


def imported(file: Path, nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    """Dotted names of the modules that some nodes import."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def folders() -> dict[str, list[Path]]:
    """The modules of each folder of Python files, without its `__init__`."""
    found: dict[str, list[Path]] = {}
    for file in FILES:
        if not file.name.startswith("__"):
            found.setdefault(name_of(file.parent), []).append(file)
    return found


def test_only_the_package_itself_lies_at_the_top() -> None:
    assert {file.name for file in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "plugins.py"}


@pytest.mark.parametrize("folder", sorted(set(folders()) - set(PLUGINS)))
def test_folder_is_small_and_named_by_meaning(folder: str) -> None:
    names = [file.stem for file in folders()[folder]]
    assert len(names) <= MOST_FILES
    prefixes = Counter(name.partition("_")[0] for name in names)
    assert [prefix for prefix, count in prefixes.items() if count > MOST_OF_A_PREFIX] == []


def test_plugin_folders_are_there() -> None:
    assert set(PLUGINS) <= set(folders())


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_functions_are_short(file: Path) -> None:
    long = {f.name: length(f) for f in functions_of(file) if length(f) > LONGEST_FUNCTION}
    assert long == {}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_public_names_are_documented(file: Path) -> None:
    bare = [name for name, node in public_nodes(file) if not ast.get_docstring(node)]
    assert bare == []


def test_no_public_name_means_two_things() -> None:
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for name, node in public_nodes(file):
            if isinstance(node, (Function, ast.ClassDef)) and "." not in name:
                homes.setdefault(name, []).append(name_of(file))
    entries = {"command", "main", "show"}  # of command lines and of the processes of workers
    assert {n: h for n, h in homes.items() if len(h) > 1 and n not in entries} == {}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_private_files_are_their_own_folders(file: Path) -> None:
    home = ".".join(file.relative_to(ROOT.parent).parent.parts)
    private = re.compile(r"(surgery(?:\.\w+)*)\._[a-z]\w*")
    modules = {f".{name_of(f)[:-3].replace('/', '.')}" for f in FILES if f.stem.startswith("_")}
    for name in imported(file, ast.walk(tree_of(file))):
        found = private.match(name)
        if found and name.removeprefix("surgery") in modules:
            assert found[1] == home, name


@pytest.mark.parametrize("folder", PLUGINS)
def test_plugins_do_not_know_one_another(folder: str) -> None:
    own = f"surgery.{folder.replace('/', '.')}."
    shared = {"operations": {"base", "block_selector", "edits", "initial_values"}}
    views = {"cli/views": {"terminal", "page", "diagnostics", "units"}}
    known = {**shared, **views}.get(folder, set())
    for file in folders()[folder]:
        if file.stem.startswith("_") or file.stem in known:
            continue
        names = {
            n.removeprefix(own).partition(".")[0]
            for n in imported(file, ast.walk(tree_of(file)))
            if n.startswith(own)
        }
        assert {n for n in names if not n.startswith("_")} <= known, name_of(file)


@pytest.mark.parametrize("package", LIGHT)
def test_heavy_packages_are_not_imported_at_the_top(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    tops = {
        name_of(f): {n.partition(".")[0] for n in imported(f, tree_of(f).body)} & HEAVY
        for f in files
    }
    assert {name: heavy for name, heavy in tops.items() if heavy} == {}


def test_light_packages_load_without_heavy_ones() -> None:
    files = [f for package in LIGHT for f in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(f.relative_to(ROOT.parent).with_suffix("").parts) for f in files]
    names = [n.removesuffix(".__init__") for n in names if not n.endswith("__main__")]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += f"print(sorted({HEAVY} & set(sys.modules)))"
    run = [sys.executable, "-c", code, *names]
    done = subprocess.run(run, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def drawn_floors() -> list[list[str]]:
    """The floors that docs/design.md draws, from the top."""
    text = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    drawing = text.partition("## Floors")[2].partition("```\n")[2].partition("```")[0]
    return [line.split() for line in drawing.splitlines()]


def test_design_draws_the_floors_that_imports_have() -> None:
    floors = {name: n for n, line in enumerate(drawn_floors()) for name in line}
    there = {path.stem for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert set(floors) == there | {"plugins"}
    for file in FILES:
        own = name_of(file).partition("/")[0].removesuffix(".py")
        if own not in floors or name_of(file) == "sweep/__main__.py":
            continue
        names = imported(file, ast.walk(tree_of(file)))
        others = {name.split(".")[1] for name in names if name.startswith("surgery.")} - {own}
        assert all(floors[other] > floors[own] for other in others & set(floors)), name_of(file)


def test_design_says_of_each_package_what_it_is_for() -> None:
    text = (ROOT.parent / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [A-Z].*\. \|$", text, re.M)
    assert rows == [name for line in drawn_floors() for name in line]


def test_tests_are_laid_out_as_the_package() -> None:
    here = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir()} - {
        "__pycache__"
    }
    there = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert here == there


def test_measures_see_what_they_measure(tmp_path: Path) -> None:
    file = tmp_path / "measured.py"
    body = "\n".join(f"    x = {i}" for i in range(70))
    file.write_text(f'import torch.nn\n\n\ndef bare(a):\n    """One\n    two."""\n{body}\n')
    file.write_text(file.read_text() + "\n\nclass Public:\n    def method(self):\n        pass\n")
    assert imported(file, tree_of(file).body) == {"torch.nn"}
    assert [length(function) for function in functions_of(file)] == [71, 2]
    assert [n for n, node in public_nodes(file) if not ast.get_docstring(node)] == [
        "the module",
        "Public",
        "Public.method",
    ]
