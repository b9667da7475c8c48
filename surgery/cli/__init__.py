"""The command line: one file a command, found by its name.

A module here defines `command`, a function that typer turns into the command of the module's name,
or `group`, a typer app with commands of its own. Nothing heavy is imported before a command runs.
"""

import io
import os
import sys
from typing import Final

import typer

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    SurgeryError,
)
from surgery.diagnostics.wording import named_line
from surgery.plugins import modules_in

EXIT_BUG: Final = 70  # EX_SOFTWARE of sysexits.h

_EPILOG: Final = "Example: surgery apply recipes/genieblue_skip.yaml model=Qwen/Qwen2.5-3B rank=16"


def build_app() -> typer.Typer:
    """Return the app with every command of this folder."""
    app = typer.Typer(
        name="surgery",
        help="Architecture surgery for language models, by recipe.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for module in modules_in("surgery.cli.commands"):
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        if hasattr(module, "group"):
            app.add_typer(module.group, name=name)
        else:
            app.command(name, epilog=getattr(module, "EPILOG", None))(module.command)
    return app


def main() -> None:
    """Run the command line; a mistake ends in sentences and an exit code, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # as stderr does it: the name of a file may be any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        build_app()()
    except SurgeryError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ENVIRONMENT)
    except Exception as error:
        if _debugging():
            raise
        if isinstance(error, OSError) and error.filename is not None:
            _fail(
                SurgeryError(
                    diagnostic(
                        "A313",
                        file=os.fsdecode(error.filename),
                        reason=error.strerror or str(error),
                    )
                )
            )
        _report_bug(error)
        sys.exit(EXIT_BUG)


def _print_version(requested: bool) -> None:
    if requested:
        from surgery.diagnostics.distribution import own_version

        print(f"surgery {own_version()}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False,
        "--version",
        "-V",
        help="Print the version.",
        is_eager=True,
        callback=_print_version,  # an eager one runs before typer misses a command
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
) -> None:
    """What every command takes before its name."""


def _debugging() -> bool:
    return "--debug" in sys.argv


def _report_bug(error: Exception) -> None:
    sys.stderr.write(
        f"error: this is a bug in surgery: {named_line(error)}\n"
        "  fix: run it again as `surgery --debug …` and report the traceback\n"
    )


def _fail(error: SurgeryError) -> None:
    if _debugging():
        raise error
    from surgery.cli.views.diagnostics import print_diagnostics

    print_diagnostics(error.diagnostics)
    sys.exit(error.exit_code)
