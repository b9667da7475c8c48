"""Whether Qualcomm's compiler can run here, and which one it is. Imports nothing heavy."""

import importlib
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line

PACKAGE: Final = "onnxruntime-qnn"
_GLIBC: Final = (2, 35)
"""The wheel is tagged manylinux_2_35_x86_64."""


@dataclass(frozen=True)
class Toolchain:
    """The versions that a verdict stands on.

    Args:
        package: of onnxruntime-qnn.
        sdk: of QAIRT, Qualcomm's SDK inside it.
        runtime: of onnxruntime.
    """

    package: str
    sdk: str
    runtime: str

    def __str__(self) -> str:
        return f"{PACKAGE} {self.package} (QAIRT {self.sdk}), onnxruntime {self.runtime}"


def toolchain() -> Toolchain:
    """Return the compiler that is installed.

    Raises:
        SurgeryError: X101 where the extra is not installed, X102 where it can't run.
    """
    _check_machine()
    try:
        package, runtime = version(PACKAGE), version("onnxruntime")
        built: str = importlib.import_module("onnxruntime_qnn.build_and_package_info").qnn_version
    except (PackageNotFoundError, ImportError, AttributeError) as error:
        raise SurgeryError(
            diagnostic("X101", package=PACKAGE, install_line=install_line("snapdragon"))
        ) from error
    return Toolchain(package, built, runtime)


def why_not() -> str:
    """Why there is no compiler here, in one sentence; empty where there is one."""
    try:
        toolchain()
    except SurgeryError as error:
        found = error.diagnostics[0]
        return f"{found.what}: {found.fix}"
    return ""


def _check_machine() -> None:
    system, machine = platform.system(), platform.machine()
    library, release = platform.libc_ver()
    known = (system, machine, library) == ("Linux", "x86_64", "glibc")
    if known and tuple(map(int, release.split(".")[:2])) >= _GLIBC:
        return
    here = " ".join(part for part in (system, machine, library, release) if part)
    raise SurgeryError(diagnostic("X102", here=here))
