"""Remote code that this package has itself: the model types in `model/remote_models`.

Their code is loaded from the package and not from the checkpoint, so that they need no
`trust_remote_code`.
"""

from importlib import import_module
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "remote_models"


def remote_file(model_type: str) -> Path | None:
    """The file with the code of a model type; None where the package has none."""
    known = {file.stem: file for file in _FOLDER.glob("[a-z]*.py")}
    return known.get(model_type)


def register(model_type: str) -> bool:
    """Register a model type of that folder with transformers; False where it isn't one."""
    if remote_file(model_type) is None:
        return False
    import_module(f"surgery.model.remote_models.{model_type}")
    return True
