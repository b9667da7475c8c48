"""`surgery lint`."""

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from surgery.cli.arguments import AllowEnv, RemoteCode
from surgery.diagnostics.diagnostic import EXIT_NO, SurgeryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from surgery.lint.linter import Depth, Level, Progress
    from surgery.lint.report import Report
    from surgery.lint.subject import Subject

EPILOG = "Example: surgery lint genieblue_skip model=Qwen/Qwen2.5-3B --target snapdragon --prove"
_Format: TypeAlias = Annotated[
    Literal["human", "json", "sarif", "github"],
    typer.Option("--format", help="For a person, a machine, code hosts, or GitHub Actions."),
]
_Words: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SUBJECT|KEY=VALUE",
        help="Recipes, adapter folders, checkpoints (folder, hub id, builtin/NAME or "
        "config.json) and .onnx files, and overrides for the recipes. "
        "Without a subject, every packaged recipe.",
    ),
]
_Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="A device of `surgery targets list`, snapdragon unless given; repeatable."),
]
_Graph: TypeAlias = Annotated[
    bool, typer.Option("--graph", help="Read the graphs of the blocks as well (needs torch).")
]
_Prove: TypeAlias = Annotated[
    bool, typer.Option("--prove", help="Compile and run them too, on Qualcomm's own compiler.")
]
_Context: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of the cache; 4096, or as many as the model is made for."),
]
_Scheme: TypeAlias = Annotated[
    Literal["w4a16", "w8a16", "fp16"] | None,
    typer.Option(help="Quantization on the device, w4a16 unless given; --prove: all three."),
]
_Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=1, help="Seconds that --prove gives a graph, 300 unless given; beyond, it goes on."
    ),
]
_FailOn: TypeAlias = Annotated[
    Literal["error", "warning", "note"],
    typer.Option(help="Exit 1 from this severity on; what a recipe allows doesn't count."),
]
_Fix: TypeAlias = Annotated[
    bool, typer.Option("--fix", help="Correct your recipe file where one key is enough.")
]
_Out: TypeAlias = Annotated[Path | None, typer.Option(help="Write the result here.")]


def command(
    words: _Words = None,
    target: _Targets = None,
    graph: _Graph = False,
    prove: _Prove = False,
    context: _Context = None,
    scheme: _Scheme = None,
    timeout: _Timeout = None,
    output_format: _Format = "human",
    fail_on: _FailOn = "error",
    fix: _Fix = False,
    out: _Out = None,
    allow_env: AllowEnv = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Say what a device can't run, and how that is known; exit 1 if there is anything."""
    from surgery.lint.linter import TIMEOUT, Depth, check_depth, lint_subject
    from surgery.lint.subject import find_subjects, is_override
    from surgery.npu.target import load_target
    from surgery.storage.atomic_text import try_text

    subjects = find_subjects(words or [], allow_env=allow_env)
    if out:
        try_text(out, inputs=(item for subject in subjects for item in subject.inputs()))
    targets = list({t.name: t for t in map(load_target, target or ["snapdragon"])}.values())
    level: Level = "prove" if prove else "graph" if graph else "recipe"
    depth = Depth(level, context, scheme, trust_remote_code, timeout or TIMEOUT)
    check_depth(targets, depth)
    with _progress(depth) as progress:
        run = partial(lint_subject, targets=targets, depth=depth, progress=progress)
        reports = [report for subject in subjects for report in _linted(subject, run, fix)]
    failed = any(report.fails(fail_on) for report in reports)
    _show(reports, output_format, out, failed=failed, overview=all(map(is_override, words or [])))
    errors = dict.fromkeys(error for report in reports for error in report.errors)
    if errors:
        raise SurgeryError(errors)
    if failed:
        raise typer.Exit(EXIT_NO)


@contextmanager
def _progress(depth: "Depth") -> "Iterator[Progress]":
    """Steps on a terminal or as lines; level 1 is done before one could be read."""
    if depth.level == "recipe":
        yield lambda step: None
        return
    from surgery.cli.views.verify import check_progress

    with check_progress() as progress:
        progress("start torch")
        yield progress


def _linted(
    subject: "Subject", run: "Callable[[Subject], list[Report]]", fix: bool
) -> "list[Report]":
    """Lint; with `--fix` correct what can be corrected, say so, and lint what has come of it."""
    reports = run(subject)
    if not fix:
        return reports
    from surgery.cli.views.lint.table import print_fixes
    from surgery.lint.fixes import fixes_of, write_fixes

    fixes = fixes_of(found for report in reports for found in report.findings)
    written = write_fixes(subject, fixes)
    print_fixes(subject, written, [fix for fix in fixes if fix not in written])
    return run(subject) if written else reports


def _show(
    reports: "Sequence[Report]",
    output_format: str,
    out: Path | None,
    *,
    failed: bool,
    overview: bool,
) -> None:
    """To the terminal, to stdout, or whole into a file, with a line that says so."""
    if output_format == "human" and not out:
        from surgery.cli.views.lint.table import print_reports

        print_reports(reports, overview=overview)
        return
    text = _text(reports, output_format, failed, overview)
    if not out:
        typer.echo(text, nl=False)
        return
    from surgery.storage.atomic_text import replace_text

    replace_text(out, text)
    typer.echo(f"wrote {out}", err=True)


def _text(reports: "Sequence[Report]", output_format: str, failed: bool, overview: bool) -> str:
    """The result in one of the formats; a person's as wide as a file may be."""
    if output_format == "json":
        from surgery.cli.views.lint.json_document import lint_document

        return lint_document(reports, failed=failed)
    if output_format == "sarif":
        from surgery.cli.views.lint.sarif import sarif

        return sarif(reports)
    if output_format == "github":
        from surgery.cli.views.lint.github import annotations

        return annotations(reports)
    from surgery.cli.views.lint.table import as_text

    return as_text(reports, overview=overview)
