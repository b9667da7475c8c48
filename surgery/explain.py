"""The pages behind the codes, one Markdown file each in `surgery/errors/`."""

from pathlib import Path
from typing import Final

from surgery.diagnostic import Diagnostic, SurgeryError

_FOLDER: Final = Path(__file__).parent / "errors"


def all_pages() -> dict[str, str]:
    """The title of each page by its code."""
    return {file.stem: _title(file) for file in sorted(_FOLDER.glob("*.md"))}


def page_of(code: str) -> str:
    """Return the page of a code, as Markdown.

    Raises:
        SurgeryError: R117, if there is no such code.
    """
    file = _FOLDER / f"{code.upper()}.md"
    if not code.isalnum() or not file.is_file():
        known = ", ".join(all_pages())
        fix = "`surgery explain all` lists them with their titles"
        raise SurgeryError(Diagnostic("R117", f"there is no code `{code}`", f"known: {known}", fix))
    return file.read_text(encoding="utf-8")


def _title(file: Path) -> str:
    first = file.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").partition(":")[2].strip()
