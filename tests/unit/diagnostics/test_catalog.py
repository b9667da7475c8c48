"""Each message is a template on its code's page, and each call in the code fills it exactly."""

import ast
import string
from pathlib import Path

import pytest

from surgery.diagnostics.catalog import PAGES, diagnostic, forms_of, split_page
from surgery.recipe.error_mapping import OWN_ERRORS

PACKAGE = Path(__file__).parents[3] / "surgery"
PARTS = ("what", "why", "fix")
CODES = sorted(page.stem for page in PAGES.glob("*.md"))
FORMS = [
    f"{code}.{form}".rstrip(".") for code in CODES for form in forms_of(code)
]  # as `diagnostic` takes them
BUILDS = {
    "diagnostics/catalog.py",
    "lint/fixes.py",  # only asks for a key's position
    "plan/depth/build_check.py",  # reads one back from a cache
}
"""The files that make a `Diagnostic` themselves."""


def form_of(name):
    return forms_of(name[:4])[name[5:]]


def fields_of(name):
    texts = (form_of(name).get(part, "") for part in PARTS)
    return {field for text in texts for _, field, _, _ in string.Formatter().parse(text) if field}


def calls(function):
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == function:
                yield file.relative_to(PACKAGE).as_posix(), node


CALLS = [(f"{file}:{call.lineno}", call) for file, call in calls("diagnostic")]


def names_of(call):
    """The form that a call names, one of two, or that of an error that our validators raise."""
    (name,) = call.args
    if isinstance(name, ast.Subscript):
        assert ast.unparse(name.value) == "OWN_ERRORS"
        return list(OWN_ERRORS.values())
    choices = [name.body, name.orelse] if isinstance(name, ast.IfExp) else [name]
    return [choice.value for choice in choices]


@pytest.mark.parametrize("name", FORMS)
def test_template_renders_with_its_example(name):
    form = form_of(name)
    assert set(form) <= {*PARTS, "severity", "example"}
    assert set(form.get("example", {})) == fields_of(name)
    example = diagnostic(name, **form.get("example", {}))
    assert example.what
    assert not example.what.endswith(".")
    for line in "\n".join(getattr(example, part) for part in PARTS).split("\n"):
        assert line.strip() == " ".join(line.split())


@pytest.mark.parametrize("code", CODES)
def test_a_page_shows_one_of_its_templates_as_rendered(code):
    page = split_page(code)[1]
    rendered = [
        diagnostic(name, **form_of(name).get("example", {})) for name in FORMS if name[:4] == code
    ]
    assert any(
        all(not getattr(item, part) or getattr(item, part) in page for part in PARTS)
        for item in rendered
    )


@pytest.mark.parametrize(("place", "call"), CALLS, ids=[place for place, _ in CALLS])
def test_a_call_gives_what_the_template_asks_for(place, call):
    given = {keyword.arg for keyword in call.keywords} - {"key", "span"}
    assert given == set().union(*map(fields_of, names_of(call)))


def test_every_form_is_used():
    assert sorted({name for _, call in CALLS for name in names_of(call)}) == sorted(FORMS)


def test_messages_are_made_in_the_catalog_alone():
    assert {file for file, _ in calls("Diagnostic")} <= BUILDS


def test_lists_are_joined_and_numbers_formatted(tmp_path, monkeypatch):
    monkeypatch.setattr("surgery.diagnostics.catalog.PAGES", tmp_path)
    (tmp_path / "Z901.md").write_text(
        "---\nwhat: '{names} of {count:,} {{braces}} in {shape}'\nfix: '{near} look'\n---\n\n"
        "# Z901: title\n"
    )
    made = diagnostic("Z901", names=["a", "{b}"], count=1234, shape=(3, 4), near="", key="model")
    assert (made.what, made.why, made.fix) == ("a, {b} of 1,234 {braces} in [3, 4]", "", "look")
    assert (made.code, made.key, made.severity) == ("Z901", "model", "error")
    assert split_page("Z901")[1] == "# Z901: title\n"


def test_forms_take_from_the_page_what_they_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr("surgery.diagnostics.catalog.PAGES", tmp_path)
    (tmp_path / "Z902.md").write_text(
        "---\nwhy: shared\nforms:\n  one: {what: first}\n  two: {what: second, why: own, "
        "severity: note}\n---\n\n# Z902: title\n"
    )
    assert diagnostic("Z902.one").why == "shared"
    assert (diagnostic("Z902.two").why, diagnostic("Z902.two").severity) == ("own", "note")
