"""The catalog of messages: each code's page holds its sentences, and code gives their values.

A page (`pages/P206.md`) begins with front matter: the templates `what`, `why` and `fix`, where
`{model}` stands for a value by that name. A code that covers several faults has `forms`, each with
templates of its own; what a form leaves out is taken from the page.
"""

import string
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.diagnostic import Diagnostic, Span

PAGES: Final = Path(__file__).parent / "pages"
"""The folder of the pages, `CODE.md` each."""

_FENCE: Final = "---\n"


def diagnostic(
    name: str, /, *, key: str = "", span: Span | None = None, **values: Any
) -> Diagnostic:
    """Return the diagnostic of a code, in the words of its page.

    Args:
        name: Code, such as `P206`; with the form's name, `P206.copy`, where the page has several.
        key: Dotted name of the recipe key that it is about; none by default.
        span: Position in a file or override; none by default.
        values: Value of each field of the templates. Names in a list or tuple are joined by commas;
            one of numbers is written as a list.

    Raises:
        KeyError: If there is no such form, or a value of it is not given: a mistake in the code
            that calls, which tests/unit/diagnostics/test_catalog.py finds.
    """
    code, form = name[:4], forms_of(name[:4])[name[5:]]
    what, why, fix = (_FORMATTER.vformat(form.get(part, ""), (), values) for part in _PARTS)
    return Diagnostic(
        code, what.strip(), why.strip(), fix.strip(), span, form.get("severity", "error"), key
    )


@cache
def forms_of(code: str) -> Mapping[str, Mapping[str, Any]]:
    """The templates of a code by the name of their form; that of a single form is empty.

    Args:
        code: Code of a page.
    """
    import yaml

    page = dict(yaml.safe_load(split_page(code)[0]) or {})
    forms = page.pop("forms", None)
    return {name: page | form for name, form in forms.items()} if forms else {"": page}


def split_page(code: str) -> tuple[str, str]:
    """The front matter of a code's page, as YAML, and its Markdown.

    Args:
        code: Code of a page.
    """
    text = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    if not text.startswith(_FENCE):
        return "", text
    matter, _, page = text.removeprefix(_FENCE).partition(_FENCE)
    return matter, page.lstrip("\n")


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
            return ", ".join(value)
        if isinstance(value, list | tuple):
            return str(list(value))
        return str(super().format_field(value, format_spec))


_FORMATTER: Final = _Formatter()
_PARTS: Final = ("what", "why", "fix")
