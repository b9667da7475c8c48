"""Which quantizer is meant, and whether AIMET is installed. Imports nothing heavy."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.npu.qualcomm.quantize import Quantizer

PACKAGE: Final = "aimet-onnx"
"""On the package index; Qualcomm's, under BSD-3."""


def choose_quantizer(requested: Quantizer | None) -> Quantizer:
    """Return who finds the scales of weights.

    Args:
        requested: by the user; None for AIMET where it is installed, else onnxruntime.

    Raises:
        SurgeryError: X108 where AIMET is asked for and not installed.
    """
    if requested is None:
        return "aimet" if aimet_version() else "onnxruntime"
    if requested == "aimet" and not aimet_version():
        raise SurgeryError(diagnostic("X108", package=PACKAGE, install_line=install_line("aimet")))
    return requested


def aimet_version() -> str:
    """Return the version of AIMET that is installed; empty where there is none."""
    try:
        return version(PACKAGE) if find_spec("aimet_onnx") else ""
    except PackageNotFoundError:
        return ""
