"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

Recipe: TypeAlias = Annotated[
    str, typer.Argument(help="A packaged recipe such as genieblue_skip, or a path to a .yaml file.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Knobs such as rank=16, keys of all stages such as steps=9, fields by dotted name.",
    ),
]
Format: TypeAlias = Annotated[
    Literal["human", "json"], typer.Option("--format", help="For a person, or for a machine.")
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub model.")
]
RemoteCode: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the model run Python code of its own.")
]
AllowEnv: TypeAlias = Annotated[
    bool,
    typer.Option("--allow-env", help="Let the recipe read the environment, as ${oc.env:NAME}."),
]
Adapter: TypeAlias = Annotated[
    Path, typer.Argument(help="A folder that `surgery apply` or `train` wrote.", metavar="DIR")
]
Base: TypeAlias = Annotated[
    str | None, typer.Option(help="Where the base is, if not where the plan says.")
]


def with_revision(overrides: list[str] | None, revision: str | None) -> list[str]:
    """The overrides, and the revision among them where one is given."""
    return [*(overrides or []), *([f'revision="{revision}"'] if revision else [])]
