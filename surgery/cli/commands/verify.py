"""`surgery verify`."""

import typer

from surgery.cli.arguments import Adapter, Base, Format, RemoteCode
from surgery.diagnostics.diagnostic import EXIT_NO

EPILOG = "Example: surgery verify my-adapter --base ~/models/Qwen2.5-3B"


def command(
    adapter: Adapter,
    base: Base = None,
    output_format: Format = "human",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Prove on the real weights that an adapter does what its recipe says; exit 1 if it doesn't."""
    from surgery.adapter.consistency import read_document
    from surgery.cli.views.verify import check_progress, print_verification

    read_document(adapter)  # a wrong folder is told before torch takes its seconds to start
    with check_progress() as progress:
        progress("start torch")
        from surgery.verification.runner import verify_adapter

        verification = verify_adapter(
            adapter, base=base, trust_remote_code=trust_remote_code, progress=progress
        )
    if output_format == "json":
        from surgery.plan.serialization import to_json

        typer.echo(to_json(verification.document()), nl=False)
    else:
        print_verification(verification)
    if not verification.passed:
        raise typer.Exit(EXIT_NO)
