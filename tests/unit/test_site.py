"""The docs' site: every page is in the menu under its own title, and every entry is a page."""

import re
import runpy
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from surgery.lint.code_pages import all_pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


class Loader(yaml.SafeLoader):
    """MkDocs' YAML, with `!ENV [NAME, default]`."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])
SITE: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
LISTED = SITE["not_in_nav"].split()
PAGES = sorted(file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md"))


def entries(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """Title, empty where it is the page's own, and page of every entry."""
    for entry in nav:
        for title, inner in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if isinstance(inner, list):
                yield from entries(inner)
            else:
                yield title, inner


NAV = list(entries(SITE["nav"]))


def heading(page: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^# (.+)$", text, re.MULTILINE)[0]


def links(page: str) -> set[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return {link for link in LINK.findall(text) if "://" not in link}


def test_every_page_is_in_the_menu_or_in_a_list_that_is() -> None:
    menu = {page for _, page in NAV}
    for page in PAGES:
        if page in menu:
            continue
        assert any(fnmatch(page, pattern) for pattern in LISTED), page
        folder, _, name = page.rpartition("/")
        index = next(p for p in (f"{folder}/index.md", f"{folder}/README.md") if p in menu)
        assert name in links(index), page


def test_every_entry_of_the_menu_is_a_page_under_its_own_title() -> None:
    assert len({page for _, page in NAV}) == len(NAV)
    for title, page in NAV:
        assert page in PAGES
        assert title in ("", heading(page))
    titles = [heading(page) for _, page in NAV]
    assert len({*titles}) == len(titles)


CODES = [f"../surgery/diagnostics/pages/{code}.md" for code in all_pages()]


@pytest.mark.parametrize("page", [*PAGES, "../README.md", "../CONTRIBUTING.md", *CODES])
def test_every_link_leads_to_a_file(page: str) -> None:
    there = (DOCS / page).parent
    assert [link for link in links(page) if not (there / link).exists()] == []


@pytest.mark.parametrize(
    ("page", "on_site"),
    [
        ("index.md", "errors/P204.md"),
        ("how-to/depth.md", "../errors/P204.md"),
        ("reference/study/report.md", "../../errors/P204.md"),
        ("errors/index.md", "P204.md"),
    ],
)
def test_links_to_the_pages_of_codes_stay_on_the_site(page: str, on_site: str) -> None:
    site_links = runpy.run_path(str(DOCS / "hooks.py"))["site_links"]
    up = "../" * (page.count("/") + 1)
    text = f"([P204]({up}surgery/diagnostics/pages/P204.md)), [other]({up}README.md)"
    assert site_links(text, page) == f"([P204]({on_site})), [other]({up}README.md)"


def test_first_page_has_install_picture_steps_and_every_how_to() -> None:
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    assert "pip install model-surgery" in text
    assert re.search(r"!\[.+\]\(paths\.svg\)", text)
    assert "surgery verify my-adapter" in text
    assert {page for _, page in NAV if page.startswith("how-to/")} <= links("index.md")


def test_site_leads_to_the_source_and_has_a_dark_mode() -> None:
    assert SITE["repo_url"].startswith("https://")
    assert {each["scheme"] for each in SITE["theme"]["palette"]} == {"default", "slate"}
