"""A lint finding: a diagnostic with its evidence and the device that it applies to."""

from dataclasses import dataclass
from typing import Literal

from surgery.diagnostics.diagnostic import Diagnostic

Evidence = Literal["proved", "table", "doc", "report"]
"""The source of a finding: the vendor's compiler when it was run, a published operator table, the
vendor's documentation, or users' reports."""


@dataclass(frozen=True, slots=True)
class Finding(Diagnostic):
    """One problem that lint found.

    Args:
        rule: Name of the rule, as `allow` takes it.
        target: Name of the device that it applies to.
        evidence: Kind of source, see `Evidence`.
        known_by: The source itself: a toolchain with its version, or a page, with a date.
        subject: What was linted: a recipe's name, a folder or a file.
        module: Full name of the module or graph node, where there is one.
        allowed: The recipe's reason to accept it; its severity is then `note`.
        edit: Dotted key of the recipe and its new value as YAML, where one setting is the fix.
    """

    rule: str = ""
    target: str = ""
    evidence: Evidence = "doc"
    known_by: str = ""
    subject: str = ""
    module: str = ""
    allowed: str = ""
    edit: tuple[str, str] | None = None

    def __str__(self) -> str:
        lines = [Diagnostic.__str__(self)]
        if self.module:
            lines.append(f"  at: {self.module}")
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        lines.append(f"  {self.evidence}: {self.known_by}")
        return "\n".join(lines)
