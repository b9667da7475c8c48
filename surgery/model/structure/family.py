"""What structure can't tell of a model type: one small file for each in `model/families`."""

from functools import cache
from pathlib import Path
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict

_FOLDER: Final = Path(__file__).parents[1] / "families"


class Family(BaseModel):
    """The content of one file.

    Args:
        blocks: module name of the list of blocks, where structure would pick another.
        refuse: word of an operation to why it can't be done right, as half a sentence.
        called: last name of a matrix whose weight the code reads only where a field of the config
            is set, to that field; elsewhere the matrix is called like any other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    blocks: str = ""
    refuse: dict[str, str] = {}
    called: dict[str, str] = {}


@cache
def read_family(model_type: str) -> Family:
    """Return what is known of a model type beyond its structure; empty for nearly all.

    Args:
        model_type: from a config, such as `bloom`.
    """
    known = {file.stem: file for file in _FOLDER.glob("*.yaml")}
    if model_type not in known:
        return Family()
    return Family.model_validate(yaml.safe_load(known[model_type].read_text(encoding="utf-8")))
