"""`surgery targets list|show`."""

from typing import Annotated

import typer

from surgery.cli.arguments import Format

group = typer.Typer(
    help="List the devices that lint knows, and show each fact with its source.",
    no_args_is_help=True,
)


@group.command("list", epilog="Example: surgery targets list --format json")
def list_targets(output_format: Format = "human") -> None:
    """List the devices: name, alias, chip, and whether there is a compiler to ask."""
    from surgery.npu.target import known_targets, load_target

    targets = [load_target(name) for name in known_targets()]
    if output_format == "json":
        from surgery.plan.serialization import to_json

        content = {target.name: target.model_dump(mode="json") for target in targets}
        typer.echo(to_json(content), nl=False)
        return
    from surgery.cli.views.targets import print_targets

    print_targets(targets)


@group.command(epilog="Example: surgery targets show snapdragon")
def show(
    name: Annotated[str, typer.Argument(help="A target, its alias, or a .yaml file of yours.")],
    output_format: Format = "human",
) -> None:
    """Print every fact of a device with its evidence, source and date."""
    from surgery.npu.target import load_target

    target = load_target(name)
    if output_format == "json":
        typer.echo(target.model_dump_json(indent=1))
        return
    from surgery.cli.views.targets import print_target

    print_target(target)
