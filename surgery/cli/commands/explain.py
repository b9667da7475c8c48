"""`surgery explain`."""

from typing import Annotated

import typer

EPILOG = "Example: surgery explain P204"


def command(
    code: Annotated[
        str,
        typer.Argument(help="A code such as P204, or the name of a lint rule; `all` lists them."),
    ],
) -> None:
    """Print the page of a code: what it means, an example, and what to do."""
    from surgery.cli.views.page import print_page
    from surgery.lint.code_pages import all_pages, page_of, rule_pages

    if code == "all":
        for name, title in {**all_pages(), **rule_pages()}.items():
            typer.echo(f"{name}  {title}")
        return
    print_page(page_of(code))
