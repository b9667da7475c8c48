"""`surgery evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from surgery.cli.arguments import Adapter, Base, Format, RemoteCode

EPILOG = "Example: surgery evaluate my-adapter --text heldout.jsonl --questions test.jsonl"


def command(
    adapter: Adapter,
    text: Annotated[
        Path | None, typer.Option(help="Held-out text; the base's own unless given.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Conversations whose answers are compared.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder that their image paths are relative to.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The JSON of another adapter, for the retention.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="A JSONL file to write every answer to.")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of a block of text.", min=2)] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.", min=1)] = 32,
    base: Base = None,
    output_format: Format = "human",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Measure perplexity on both paths against the base, and answers against what is written."""
    from surgery.cli.views.evaluate import print_evaluation
    from surgery.evaluation.evaluate import evaluate_adapter
    from surgery.plan.serialization import to_json

    evaluation = evaluate_adapter(
        adapter,
        text=text,
        questions=questions,
        images=images,
        reference=reference,
        predictions=predictions,
        length=length,
        new_tokens=new_tokens,
        base=base,
        trust_remote_code=trust_remote_code,
    )
    if output_format == "json":
        typer.echo(to_json(evaluation.document()), nl=False)
    else:
        print_evaluation(evaluation)
