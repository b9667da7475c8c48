"""`surgery export`."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from surgery.cli.arguments import Adapter, Base, Format, RemoteCode

EPILOG = "Example: surgery export my-adapter --to hf --out my-export --lora keep"


Form: TypeAlias = Annotated[
    str,
    typer.Option(help="hf, gguf, peft-lora, onnx, ort-genai, qnn or executorch.", metavar="FORM"),
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="The folder to make; exports/RECIPE unless given.")
]
Target: TypeAlias = Annotated[
    str | None, typer.Option(help="The device; `surgery targets list` names them.")
]
Lora: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="merge into its matrices, keep separate, or svd:RANK to cut an adapter; by the form.",
        metavar="FORM",
    ),
]
TextBase: TypeAlias = Annotated[
    Literal["unshared", "shared", "apart"],
    typer.Option(
        help="Give text the untouched base, let it run on the multimodal path, or share no part."
    ),
]
Copy: TypeAlias = Annotated[
    bool, typer.Option("--copy", help="Copy the base's weights where they could be reflinks.")
]
Link: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--link", help="Hard-link them rather than copy: a write into one writes into the base."
    ),
]
Checksum: TypeAlias = Annotated[
    bool, typer.Option("--checksum", help="Read linked files too, for their SHA-256.")
]
Prefill: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Tokens of one step of the prompt, 64 unless given; all but hf.", min=1),
]
Context: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Tokens of prompt and answer, 1,024 unless given; all but hf.", min=2),
]
Calibration: TypeAlias = Annotated[
    Path | None, typer.Option(help="Records in a form of `surgery train`, for ranges; qnn.")
]
Quantizer: TypeAlias = Annotated[
    Literal["onnxruntime", "aimet"] | None,
    typer.Option(help="What finds the scales of weights; AIMET where it is installed; qnn."),
]
Dtype: TypeAlias = Annotated[
    Literal["f32", "f16", "q8_0", "q4_0"] | None,
    typer.Option(help="Type of most matrices, f16 unless given; gguf."),
]
BritishQuantizer: TypeAlias = Annotated[
    Literal["onnxruntime", "aimet"] | None, typer.Option("--quantiser", hidden=True)
]
"""The option's name in releases before."""
Overwrite: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace a folder that surgery wrote before.")
]


def command(
    adapter: Adapter,
    to: Form = "hf",
    out: Out = None,
    target: Target = None,
    lora: Lora = None,
    base: TextBase = "unshared",
    at: Base = None,
    copy: Copy = False,
    link: Link = False,
    checksum: Checksum = False,
    prefill: Prefill = None,
    context: Context = None,
    calibration: Calibration = None,
    quantizer: Quantizer = None,
    quantiser: BritishQuantizer = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    output_format: Format = "human",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Write both paths of an adapter in a form that runs without surgery."""
    if copy and link:
        raise typer.BadParameter("--copy and --link contradict each other")
    from surgery.cli.views.export import print_copied, print_export
    from surgery.cli.views.progress import byte_progress
    from surgery.export.export import prepare_export

    prepared = prepare_export(
        adapter,
        to=to,
        lora=lora,
        base=base,
        target=target,
        at=at,
        copy=copy,
        link=link,
        checksum=checksum,
        prefill=prefill,
        context=context,
        calibration=calibration,
        quantizer=quantizer or quantiser,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    folder = out or Path("exports") / prepared.name
    print_copied(prepared.copied(folder))
    with byte_progress(f"writing {folder}", prepared.required_space(folder)) as progress:
        manifest = prepared.write(folder, overwrite=overwrite, progress=progress)
    if output_format == "json":
        typer.echo(manifest.model_dump_json(indent=1))
    else:
        print_export(manifest, folder)
