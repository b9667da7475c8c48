"""Model types whose code a checkpoint carries, and which this package has in `model/remote_models`.

Here they are opened from the package and not from the checkpoint, so that they need no
`trust_remote_code`.
"""

from importlib import import_module
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "remote_models"


def remote_file(model_type: str) -> Path | None:
    """The file of a model type, or None where there is none here."""
    known = {file.stem: file for file in _FOLDER.glob("[a-z]*.py")}
    return known.get(model_type)


def register(model_type: str) -> bool:
    """Let transformers know a model type of that folder; False where it isn't one."""
    if remote_file(model_type) is None:
        return False
    import_module(f"surgery.model.remote_models.{model_type}")
    return True
