"""What MkDocs adds as it builds the site: the pages of codes, which the package holds.

Pages link to them there, so that the links lead somewhere in the repository as well.
"""

import posixpath
import re
from typing import TYPE_CHECKING, Any, Final

from surgery.lint.code_pages import all_pages, page_of

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

_LINK: Final = re.compile(r"\]\((?:\.\./)+surgery/diagnostics/pages/(\w+\.md)")


def on_files(files: "Files", config: Any) -> None:
    """Add `errors/CODE.md` for each code."""
    from mkdocs.structure.files import File

    for code in all_pages():
        files.append(File.generated(config, f"errors/{code}.md", content=page_of(code)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to a code's page in the package to the one of the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """Lead the links of one page to the site's pages of codes.

    Args:
        markdown: its text.
        page: its path below docs.
    """
    home = posixpath.dirname(page)
    return _LINK.sub(lambda link: f"]({posixpath.relpath(f'errors/{link[1]}', home)}", markdown)
