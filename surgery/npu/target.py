"""A device as data: one YAML file each in `surgery/npu/targets`, every number with source and date.

A target may be `like` another, and says then only what differs. A fact that was found out on chips
that its source names must name all to which it is handed on; a test sees to it.
"""

import datetime
import os
from functools import cache
from pathlib import Path
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, Severity, SurgeryError
from surgery.diagnostics.finding import Evidence
from surgery.diagnostics.wording import close_names, first_line
from surgery.storage.yaml_text import load_yaml

_FOLDER: Final = Path(__file__).parent / "targets"
_NOT_INHERITED: Final = ("aliases", "device", "soc", "arch")
_SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
T = TypeVar("T")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Fact(_Data, Generic[T]):
    """A value, and how it is known."""

    value: T
    """The value, in the unit that its key names."""

    evidence: Evidence
    """How it is known."""

    source: str = Field(min_length=8)
    """The page, file, report or toolchain version that says so."""

    date: datetime.date
    """When that was read or run."""


class Limits(_Data):
    """What a device holds; None where nothing is known."""

    rank: Fact[int] | None = None
    """Dimensions of a tensor, at most."""

    vtcm_bytes: Fact[int] | None = None
    """Tightly coupled memory, which one operator's working set must fit into."""

    graph_bytes: Fact[int] | None = None
    """Size of one compiled graph, at most."""

    session_bytes: Fact[int] | None = None
    """Address space of one session, at most."""

    memory_bytes: Fact[int] | None = None
    """Memory of the phone, all programs together."""

    bandwidth_bytes: Fact[float] | None = None
    """Memory bandwidth, bytes a second."""

    context_tokens: Fact[int] | None = None
    """Longest context in use on this device."""

    lora_rank: Fact[int] | None = None
    """Largest rank of a pair that is switched at run time."""


class Operators(_Data):
    """Which operators of ONNX the compiler takes."""

    lacking: Fact[tuple[str, ...]] | None = None
    """Those that the compiler has none of, such as `Loop` or `com.microsoft::MoE`."""

    table: Fact[tuple[str, ...]] | None = None
    """All operators that a published table names, where there is no compiler to ask."""


class Chip(NamedTuple):
    """The numbers by which Qualcomm's compiler knows a chip."""

    soc: int
    """Of the chip."""

    arch: int
    """Version of the NPU's instruction set."""


class Target(_Data):
    """The content of one file."""

    name: str = ""
    """The file's name without its ending."""

    like: str = ""
    """A packaged target: what this file doesn't say, that one's says. `null` takes a fact out."""

    aliases: tuple[str, ...] = ()
    """Other names for it."""

    device: str
    """Chip and NPU in words."""

    compiler: Literal["htp", "none"]
    """htp: Qualcomm's compiler, offline. none: there is none to be had; tables and docs only."""

    soc: Fact[int] | None = None
    """Number by which the compiler knows the chip."""

    arch: Fact[int] | None = None
    """Version of the NPU's instruction set."""

    limits: Limits
    """What it holds."""

    types: dict[str, Fact[bool]]
    """Element types of tensors, such as `bf16`, and whether the NPU computes in them."""

    schemes: dict[str, Fact[bool]]
    """Quantizations, such as `w4a16`, and whether the compiler takes them."""

    operators: Operators = Operators()
    """Which operators it takes."""

    gravest: Severity = "error"
    """What no finding exceeds unless `severities` says so: tables alone are no proof."""

    severities: dict[str, Severity] = {}
    """Rule name to severity, where it differs from the rule's own."""

    @property
    def chip(self) -> Chip | None:
        """By which numbers its compiler is asked; None where there is none to ask."""
        if self.compiler != "htp" or not self.soc or not self.arch:
            return None
        return Chip(self.soc.value, self.arch.value)

    def severity(self, rule: str, own: Severity) -> Severity:
        """How severe a finding of a rule is here.

        Args:
            rule: its name.
            own: what the rule says.
        """
        return self.severities.get(rule, max(own, self.gravest, key=_SEVERITIES.index))

    def fact_on(self, operator: str) -> "Fact[Any] | None":
        """What speaks against an operator of ONNX: that it is lacking, or a published table."""
        lacking = self.operators.lacking
        return lacking if lacking and operator in lacking.value else self.operators.table


def known_targets() -> dict[str, tuple[str, ...]]:
    """Every target's name with its aliases."""
    names = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    return {name: read_target(_FOLDER / f"{name}.yaml").aliases for name in names}


def load_target(name: "str | os.PathLike[str] | Target") -> Target:
    """Return the target of a name, of an alias, or of a YAML file; a target is itself.

    Raises:
        SurgeryError: R121 where there is none such, R122 for a file that is not a target.
    """
    if isinstance(name, Target):
        return name
    name = os.fspath(name)
    if name.endswith((".yaml", ".yml")):
        return read_target(Path(name))
    file = _FOLDER / f"{name}.yaml"
    if name.replace("-", "").isalnum() and os.path.isfile(file):
        return read_target(file)
    for known, aliases in known_targets().items():
        if name in aliases:
            return read_target(_FOLDER / f"{known}.yaml")
    raise SurgeryError(_unknown(name))


@cache
def read_target(file: Path) -> Target:
    """Read one file.

    Raises:
        SurgeryError: R121 where there is no such file, R122 with every fault in it.
    """
    try:
        return Target.model_validate({**_content(file), "name": file.stem})
    except ValidationError as error:
        raise SurgeryError([_fault(file, dict(e)) for e in error.errors()]) from error
    except (yaml.YAMLError, TypeError, ValueError, OSError, RecursionError) as error:
        raise SurgeryError(
            diagnostic("R122.unreadable", name=file.name, reason=first_line(error))
        ) from error


def _content(file: Path) -> dict[str, Any]:
    """What a file says, and the one that it is like."""
    if not os.path.isfile(file):
        raise SurgeryError(_unknown(str(file)))
    content: Any = load_yaml(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError("its content is no mapping")
    like = content.get("like")
    if not like:
        return content
    known = _content(_FOLDER / f"{like}.yaml")
    return _merged({key: known[key] for key in known if key not in _NOT_INHERITED}, content)


def _merged(known: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Mappings key by key; a fact is replaced as one."""
    both = {key: value for key, value in own.items() if isinstance(value, dict) and key in known}
    merged = {
        key: value if "value" in value else _merged(known[key] or {}, value)
        for key, value in both.items()
    }
    return {**known, **own, **merged}


def _unknown(name: str) -> Diagnostic:
    names = [n for known, aliases in known_targets().items() for n in (known, *aliases)]
    near = close_names(name, names) or ["snapdragon"]
    return diagnostic("R121", name=name, names=list(names), near=near[0])


def _fault(file: Path, error: dict[str, Any]) -> Diagnostic:
    key = ".".join(map(str, error["loc"]))
    return diagnostic("R122.value", name=file.name, setting=key, reason=error["msg"].lower())
