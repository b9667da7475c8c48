"""All cases: those in text of the folder `cases`, and the quantized ones, which are made."""

from pathlib import Path

import yaml

from npu_matrix.case import Case
from npu_matrix.quantized import quantized_cases


def groups() -> dict[str, list[Case]]:
    """Return the cases by what a group of them is about."""
    files = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
    found = {}
    for content in (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files):
        found[content["about"]] = [Case(**entry) for entry in content["cases"]]
    return found | {"Weights of 8, 4 and 2 bits, beside 16, 8 or float": quantized_cases()}
