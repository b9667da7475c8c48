"""English text that ships inside CPython, split by topic name, for `train_tiny_qwen2.py`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from pydoc_data.topics import topics

HELDOUT_TOPICS = (
    "binary",
    "booleans",
    "calls",
    "del",
    "global",
    "import",
    "objects",
    "slicings",
    "strings",
    "typesmodules",
)
DEV_TOPICS = (
    "assert",
    "atom-identifiers",
    "dict",
    "exprlists",
    "nonlocal",
    "power",
    "raise",
    "subscriptions",
    "yield",
)
STDLIB = Path(sysconfig.get_path("stdlib"))
SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "pydoc_data"})
SHORTEST_DOCSTRING = 120  # characters
SHORTEST_COMMENT = 240  # characters
OVERLAP_WORDS = 8


@dataclass(frozen=True)
class Document:
    """One text with its name: a manual topic, or the place in the library that it was read from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The four splits: `topics` and `extra` train; `dropped` counts paragraphs in none."""

    topics: list[Document]
    extra: list[Document]
    dev: list[Document]
    heldout: list[Document]
    dropped: int

    @property
    def training(self) -> list[Document]:
        """Everything that the tokenizer, the n-gram baselines and the model are fitted on."""
        return self.topics + self.extra


def read_corpus() -> Corpus:
    """Reads and splits the text of the running Python, with no overlap of training and the rest."""
    heldout, dev = _topics(HELDOUT_TOPICS), _topics(DEV_TOPICS)
    banned = set().union(*(_word_runs(document.text) for document in heldout + dev))
    rest = sorted(set(topics) - set(HELDOUT_TOPICS) - set(DEV_TOPICS))
    manual, dropped_manual = _without(_topics(rest), banned)
    extra, dropped_extra = _without(_distinct(_library_text()), banned)
    return Corpus(manual, extra, dev, heldout, dropped_manual + dropped_extra)


def to_jsonl(documents: Iterable[Document]) -> str:
    """One `{"topic": name, "text": text}` a line: the form that is hashed and shipped."""
    rows = (json.dumps({"topic": document.name, "text": document.text}) for document in documents)
    return "".join(row + "\n" for row in rows)


def sha256(documents: Iterable[Document]) -> str:
    """The sha256 of a split's `to_jsonl` form in UTF-8."""
    return hashlib.sha256(to_jsonl(documents).encode()).hexdigest()


def psf_licence() -> str:
    """The PSF notice and the PSF License Version 2, cut from the license of the running Python."""
    whole = (STDLIB / "LICENSE.txt").read_text()
    start = whole.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    return whole[start : whole.index("BEOPEN.COM LICENSE AGREEMENT", start)].rstrip() + "\n"


def _topics(names: Iterable[str]) -> list[Document]:
    return [Document(name, topics[name]) for name in sorted(names)]


def _word_runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(OVERLAP_WORDS)), strict=False))


def _without(documents: list[Document], banned: set[tuple[str, ...]]) -> tuple[list[Document], int]:
    """Drops the paragraphs that share a run of words with `banned`, and counts them."""
    kept, dropped = [], 0
    for document in documents:
        paragraphs = re.split(r"\n\s*\n", document.text)
        clean = [text for text in paragraphs if not _word_runs(text) & banned]
        dropped += len(paragraphs) - len(clean)
        text = document.text if len(clean) == len(paragraphs) else "\n\n".join(clean)
        if text.strip():
            kept.append(Document(document.name, text))
    return kept, dropped


def _distinct(documents: Iterable[Document]) -> list[Document]:
    return list({document.text: document for document in documents}.values())


def _library_text() -> Iterator[Document]:
    for path in sorted(STDLIB.rglob("*.py")):
        place = path.relative_to(STDLIB)
        if not SKIPPED_FOLDERS & set(place.parts):
            yield from _source_text(place.as_posix(), path)
    yield from _extension_docs()
    for path in sorted((STDLIB / "idlelib").glob("*.txt")):
        yield Document(f"idlelib/{path.name}", path.read_text(encoding="utf-8", errors="replace"))
    yield Document("idlelib/help.html", _html_text(STDLIB / "idlelib" / "help.html"))


def _source_text(place: str, path: Path) -> Iterator[Document]:
    """The docstrings and the long comments of one module; nothing if it does not parse."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST_DOCSTRING:
                yield Document(place, text)
    for block in re.findall(r"(?:^[ \t]*# ?.*\n){2,}", source, flags=re.MULTILINE):
        text = re.sub(r"^[ \t]*# ?", "", block, flags=re.MULTILINE).strip()
        if len(text) >= SHORTEST_COMMENT:
            yield Document(place, text)


def _extension_docs() -> Iterator[Document]:
    """Docstrings of the modules written in C, of their classes, and of those classes' methods."""
    for name in sorted({*sys.builtin_module_names, "math", "cmath", "_decimal", "_elementtree"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
        for owner in (module, *(o for o in vars(module).values() if inspect.isclass(o))):
            for member in (owner, *vars(owner).values()):
                text = getattr(member, "__doc__", None)
                if isinstance(text, str) and len(text) >= SHORTEST_DOCSTRING:
                    yield Document(name, inspect.cleandoc(text))


class _Text(HTMLParser):
    """Collects the text of a page's body, and leaves out its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _html_text(path: Path) -> str:
    if not path.exists():
        return ""
    parser = _Text()
    parser.feed(path.read_text(encoding="utf-8"))
    return re.sub(r"\n\s*\n+", "\n\n", "".join(parser.parts)).strip()
