"""What lint says: a diagnostic that also tells how it is known, and on which device it holds."""

from dataclasses import dataclass
from typing import Literal

from surgery.diagnostics.diagnostic import Diagnostic

Evidence = Literal["proved", "table", "doc", "report"]
"""How a finding is known: the vendor's compiler said so when it was run; a published operator table
says so; the vendor's documentation does; or users report it."""


@dataclass(frozen=True, slots=True)
class Finding(Diagnostic):
    """One thing that lint found.

    Args:
        rule: name of the rule, as `allow` takes it.
        target: name of the device it holds for.
        evidence: how it is known.
        known_by: what is behind the evidence: a toolchain with its version, or a page, with a date.
        subject: what was linted: a recipe's name, a folder or a file.
        module: full name of the module or graph node that is meant, where there is one.
        allowed: the recipe's reason for living with it; its severity is then `note`.
        edit: the recipe's key, dotted, and its new value as YAML, where one setting is the remedy.
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
