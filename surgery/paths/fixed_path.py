"""Fix a model to one path, for `torch.compile`."""

from typing import TYPE_CHECKING

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.paths.path_state import TEXT, PathName, no_paths
from surgery.paths.switching import switch_of

if TYPE_CHECKING:
    from torch import nn


def fix_path(model: "nn.Module", path: PathName | None) -> None:
    """Fix a model's path, so that `torch.compile` makes one graph: dynamo can't read a ContextVar.

    The other path is then refused (A417). A compiled model whose path isn't fixed follows the
    context by breaking the graph at each layer.

    Args:
        model: The model that `apply_plan` or `load_adapter` returned.
        path: `text` or `multimodal`; None to follow the context again.

    Raises:
        SurgeryError: A405, if the model has no such path.
    """
    switch = switch_of(model)
    if path == TEXT and not switch.has_text_path:
        raise SurgeryError(no_paths(model))
    switch.fixed = path
