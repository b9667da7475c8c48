"""Which quantiser is meant, and whether AIMET is installed. Imports nothing heavy."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.npu.qualcomm.quantize import Quantiser

PACKAGE: Final = "aimet-onnx"
"""On the package index; Qualcomm's, under BSD-3."""


def chosen_quantiser(asked: Quantiser | None) -> Quantiser:
    """Return who finds the scales of weights.

    Args:
        asked: by the user; None for AIMET where it is installed, else onnxruntime.

    Raises:
        SurgeryError: X108 where AIMET is asked for and not installed.
    """
    if asked is None:
        return "aimet" if aimet_version() else "onnxruntime"
    if asked == "aimet" and not aimet_version():
        raise SurgeryError(_missing())
    return asked


def aimet_version() -> str:
    """Return the version of AIMET that is installed; empty where there is none."""
    try:
        return version(PACKAGE) if find_spec("aimet_onnx") else ""
    except PackageNotFoundError:
        return ""


def _missing() -> Diagnostic:
    return Diagnostic(
        code="X108",
        what="AIMET is not installed",
        why=f"it comes with {PACKAGE}, which takes 0.6 GB, so it is an extra",
        fix=f"{install_line('aimet')}, or leave `--quantiser` out",
    )
