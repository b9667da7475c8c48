"""Facts on a model type that its structure doesn't show: one file each in `model/families`."""

from functools import cache
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict

_FOLDER: Final = Path(__file__).parents[1] / "families"


class Family(BaseModel):
    """The content of one file.

    Args:
        blocks: Module name of the list of blocks, where structure would pick another one.
        refuse: From the name of an unsupported operation to the reason, as a clause.
        called: From the last name of a matrix to the config field without which the code calls it
            as a module; where the field is set, its weight is read directly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    blocks: str = ""
    refuse: dict[str, str] = {}
    called: dict[str, str] = {}


@cache
def read_family(model_type: str) -> Family:
    """Return the facts on a model type beyond its structure; empty for nearly all.

    Args:
        model_type: Value from a config, such as `bloom`.
    """
    known = {file.stem: file for file in _FOLDER.glob("*.yaml")}
    if model_type not in known:
        return Family()
    return Family.model_validate(yaml.safe_load(known[model_type].read_text(encoding="utf-8")))
