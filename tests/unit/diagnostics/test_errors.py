"""Every code has a page, every page has a code, and all pages have one form."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from surgery.cli import build_app
from surgery.diagnostics.diagnostic import _EXIT_BY_FAMILY, SurgeryError
from surgery.lint.code_pages import all_pages, page_of, rule_pages

PACKAGE = Path(__file__).parents[3] / "surgery"
CODE = re.compile(r"[\"']([A-Z]\d{3})[.\"']")
FORM = re.compile(
    r"# (?P<code>[A-Z]\d{3}): (?P<title>[^\n]{4,60})\n\n"
    r"## What it means\n\n(?P<meaning>.+?)\n\n"
    r"## Example\n\n(?P<example>.+?)\n\n"
    r"## What to do\n\n(?P<remedy>.+)\n",
    re.DOTALL,
)


def used_codes():
    texts = (file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    return {code for text in texts for code in CODE.findall(text)}


def test_codes_and_pages_are_the_same_set():
    assert sorted({**all_pages(), **rule_pages()}) == sorted(used_codes())
    assert not all_pages().keys() & rule_pages().keys()


def test_every_family_has_an_exit_code():
    assert {code[0] for code in used_codes()} <= set(_EXIT_BY_FAMILY)


def test_a_named_file_that_is_missing_ends_as_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk = {"image": "gone.png", "messages": [{"role": "user", "content": "What?"},
            {"role": "assistant", "content": "That."}]}  # fmt: skip
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk))
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for words, code, ends in (
        (["verify", "gone"], "A402", 3),
        (["plan", "lora", "model=./gone"], "M101", 3),
        (["train", "lora", "data=gone.jsonl"], "D101", 3),
        (["train", "lora", "data=talk.jsonl"], "D105", 3),
        (["train", "lora", "data=bad.jsonl"], "D102", 2),
    ):
        error = CliRunner().invoke(build_app(), words).exception
        assert isinstance(error, SurgeryError), words
        assert (error.diagnostics[0].code, error.exit_code) == (code, ends)


@pytest.mark.parametrize("code", all_pages())
def test_page_has_the_form_and_shows_its_code(code):
    page = FORM.fullmatch(page_of(code))
    assert page
    assert page["code"] == code
    assert not page["title"].endswith(".")
    assert code in page["example"].split("```console")[1]
    assert "Traceback" not in page["example"]
    assert "/tmp/" not in page["example"]


def test_title_is_a_name_of_its_own():
    titles = list(all_pages().values())
    assert len(set(titles)) == len(titles)


def test_page_is_found_in_lower_case_and_unknown_codes_are_errors():
    assert page_of("r101") == page_of("R101")
    for code in ("R999", "", "../R101", "r", "R101.md"):
        with pytest.raises(SurgeryError) as caught:
            page_of(code)
        assert caught.value.diagnostics[0].code == "R117"


@pytest.mark.parametrize(
    ("typed", "meant"), [("P20", "`P220`"), ("routed", "`routed-expert`"), ("P2o4", "`P204`")]
)
def test_unknown_codes_are_one_line_with_the_nearest(typed, meant):
    with pytest.raises(SurgeryError) as caught:
        page_of(typed)
    assert meant in caught.value.diagnostics[0].fix
    assert max(map(len, str(caught.value).splitlines())) < 140
