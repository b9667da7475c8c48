"""`surgery export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from surgery.commands._arguments import Adapter, Base, Format, RemoteCode

EPILOG = "Example: surgery export my-adapter --to hf --out my-export --lora keep"


def command(
    adapter: Adapter,
    to: Annotated[str, typer.Option(help="The form, such as hf.")] = "hf",
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; exports/RECIPE unless given.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The device; `surgery targets list` names them.")
    ] = None,
    lora: Annotated[
        Literal["merge", "keep"] | None,
        typer.Option(help="Merge LoRA into its matrices, or keep it apart; by the form."),
    ] = None,
    base: Annotated[
        Literal["unshared", "shared"],
        typer.Option(help="Give text the untouched base, or let it run on the multimodal path."),
    ] = "unshared",
    at: Base = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the base's weights where they could be linked.")
    ] = False,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Read linked files too, for their SHA-256.")
    ] = False,
    prefill: Annotated[
        int,
        typer.Option(
            help="Tokens of one step of the prompt, 1 for token by token; onnx, qnn.", min=1
        ),
    ] = 64,
    context: Annotated[
        int, typer.Option(help="Tokens of prompt and answer together; onnx, qnn.", min=2)
    ] = 1024,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Records in a form of `surgery train` for the ranges; qnn."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that surgery wrote before.")
    ] = False,
    output_format: Format = "human",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Write both paths of an adapter in a form that runs without surgery."""
    from surgery.export import prepare_export
    from surgery.reporters.export_table import print_export
    from surgery.reporters.progress import byte_progress

    prepared = prepare_export(
        adapter,
        to=to,
        lora=lora,
        base=base,
        target=target,
        at=at,
        copy=copy,
        checksum=checksum,
        prefill=prefill,
        context=context,
        calibration=calibration,
        trust_remote_code=trust_remote_code,
    )
    folder = out or Path("exports") / prepared.name
    with byte_progress(f"writing {folder}", prepared.room(folder)) as progress:
        manifest = prepared.write(folder, overwrite=overwrite, progress=progress)
    if output_format == "json":
        typer.echo(manifest.model_dump_json(indent=1))
    else:
        print_export(manifest, folder)
