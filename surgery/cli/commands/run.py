"""`surgery run`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from surgery.cli.arguments import Format, RemoteCode

EPILOG = 'Example: surgery run my-export --path multimodal --image cat.png --prompt "What is it?"'


def command(
    export: Annotated[
        Path, typer.Argument(help="A folder that `surgery export` wrote.", metavar="DIR")
    ],
    path: Annotated[Literal["text", "multimodal"], typer.Option(help="The path to run.")],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture to show before it; may be repeated.")
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Tokens of the answer, at most.", min=1)
    ] = 32,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Put the prompt into the chat template, or not; by whether the model has one.",
        ),
    ] = None,
    output_format: Format = "human",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Run one path of what was exported, greedily."""
    from surgery.plan.serialization import to_json
    from surgery.runtime.run import run_export

    answer = run_export(
        export,
        path,
        prompt,
        images=image or (),
        chat=chat,
        new_tokens=new_tokens,
        trust_remote_code=trust_remote_code,
    )
    if output_format == "json":
        typer.echo(to_json(answer.document()), nl=False)
    else:
        typer.echo(answer.text)
