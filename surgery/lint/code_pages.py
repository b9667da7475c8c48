"""The pages of the codes: Markdown in `diagnostics/pages`, and the docstrings of rules."""

import inspect
import os
from typing import TYPE_CHECKING, Final

from surgery.diagnostics.catalog import PAGES, diagnostic, split_page
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import suggest

if TYPE_CHECKING:
    from surgery.lint.base import Rule

_RULE: Final = "L"
"""The first letter of the codes of rules."""


def all_pages() -> dict[str, str]:
    """The title of each error's page by its code."""
    return {file.stem: _title(file.stem) for file in sorted(PAGES.glob("*.md"))}


def rule_pages() -> dict[str, str]:
    """The name of each lint rule by its code; this imports the rules."""
    return {code: rule.name for code, rule in _rules().items()}


def page_of(code: str) -> str:
    """Return the page of a code, as Markdown; a rule is found by its name, too.

    Raises:
        SurgeryError: R117, if there is no such code.
    """
    if code.isalnum() and os.path.isfile(PAGES / f"{code.upper()}.md"):
        return split_page(code.upper())[1]
    if code.upper().startswith(_RULE) or "-" in code or code.islower():
        for known, rule in _rules().items():
            if code.upper() == known or code == rule.name:
                return _page(rule)
    rules = rule_pages()
    near = suggest(code.upper(), [*all_pages(), *rules], 3) or suggest(code, rules.values(), 3)
    raise SurgeryError(diagnostic("R117", code=code, near=near))


def _rules() -> "dict[str, Rule]":
    from surgery.lint.base import known_rules

    return {rule.code: rule for rule in known_rules().values()}


def _page(rule: "Rule") -> str:
    """A rule's docstring under its code and name, and what it stands on."""
    text = inspect.cleandoc(type(rule).__doc__ or "")
    return (
        f"# {rule.code}: {rule.name}\n\n{text}\n\n"
        f"Severity: {rule.severity}, unless the target or the finding says otherwise. Known by: "
        f"{rule.evidence}, {rule.known_by}. To live with it, a recipe says "
        f"`allow: {{{rule.name}: why, in words}}`.\n"
    )


def _title(code: str) -> str:
    first = split_page(code)[1].split("\n", 1)[0]
    return first.removeprefix("#").partition(":")[2].strip()
