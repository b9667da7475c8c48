"""A page in Markdown, such as an error's: formatted on a terminal, as it is elsewhere."""

from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Markdown, MarkdownElement
from rich.text import Text

from surgery.cli.views.terminal import out


class _Code(CodeBlock):
    """Code whose lines only the terminal breaks, so that they can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = str(self.text).rstrip().split("\n")
        code = "\n".join(f"  {line}".rstrip() for line in lines)
        yield Text(code, "cyan", no_wrap=True, overflow="ignore")


class _Page(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
    }


def print_page(text: str) -> None:
    """Print a page to stdout.

    Args:
        text: Markdown.
    """
    if out().is_terminal:
        out().print(_Page(text), crop=False)
    else:
        out().print(text.rstrip("\n"), soft_wrap=True)
