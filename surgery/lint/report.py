"""What lint tells of one subject on one target, as plain data that every reporter takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from surgery.diagnostics.diagnostic import Diagnostic, Severity, Span
from surgery.diagnostics.finding import Finding
from surgery.lint.subject import Subject
from surgery.recipe.source_map import shown_path

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""From the worst on."""

Outcome = Literal["proved", "near", "undecided", "failed"]
"""near: compiles and runs, and is off by more than usual; undecided: it took too long."""


@dataclass(frozen=True)
class Proof:
    """What the vendor's compiler and emulator made of one graph.

    Args:
        form: kind of block, such as `block+lora`, or the file's name.
        phase: `prefill` or `decode`; empty for a file.
        scheme: `fp16`, `w8a16` or `w4a16`.
        passed: whether it compiles, runs, and computes what it should.
        outcome: the same in one word.
        cosine: least over the outputs, against the reference of the scheme; None if it never ran.
        error: greatest absolute difference, likewise.
        context_bytes: size of the compiled graph.
        seconds: that compiling and running took; those of the first time, where it is remembered.
        toolchain: who says so.
        blocks: how many blocks of the model are of this form.
    """

    form: str
    phase: str
    scheme: str
    passed: bool
    cosine: float | None
    error: float | None
    context_bytes: int
    seconds: float
    toolchain: str
    blocks: int = 0
    outcome: Outcome = "failed"


@dataclass(frozen=True)
class Report:
    """One subject on one target.

    Args:
        subject: what was linted.
        target: the device's name.
        level: how deep: `recipe`, `graph` or `prove`; an ONNX file is a graph.
        model: what its plan is made on; empty for an ONNX file.
        findings: in the order of the levels, then of the codes.
        proofs: of level 3.
        errors: why it could not be linted, where that is so.
    """

    subject: Subject
    target: str
    level: str = "recipe"
    model: str = ""
    findings: tuple[Finding, ...] = ()
    proofs: tuple[Proof, ...] = ()
    errors: tuple[Diagnostic, ...] = ()

    def fails(self, threshold: Severity) -> bool:
        """Whether there is a finding at least so severe; one that the recipe allows is none."""
        counted = SEVERITIES[: SEVERITIES.index(threshold) + 1]
        return any(f.severity in counted and not f.allowed for f in self.findings)

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(found.severity == severity for found in self.findings)

    def location_of(self, diagnostic: Diagnostic) -> tuple[str, Span | None]:
        """The file, and the position in it, at which a code host can show what is said.

        What a packaged parent says is shown at the user's own recipe, which starts from it; the
        name is empty where there is no file at all.
        """
        own_file = shown_path(self.subject.file.absolute()) if self.subject.file else ""
        span = diagnostic.span
        if span is None or span.file.startswith("<"):
            return own_file, None
        is_elsewhere = (
            own_file and Path(span.file).is_absolute() and not Path(own_file).is_absolute()
        )
        return (own_file, None) if is_elsewhere else (span.file, span)

    @property
    def verdict(self) -> str:
        """One word: `unknown` (it could not be linted), `rejected`, `warned` or `clean`."""
        if self.errors:
            return "unknown"
        if self.fails("error"):
            return "rejected"
        return "warned" if self.fails("warning") else "clean"


def counted_findings(report: Report) -> str:
    """The findings by number, such as `1 error, 2 warnings`, or `nothing found`."""
    counts = [(report.count(severity), severity) for severity in SEVERITIES]
    counted = [f"{n} {severity}{'s' * (n > 1)}" for n, severity in counts if n]
    return ", ".join(counted) or "nothing found"
