"""Operations that a model doesn't support, by its config and its shared parameters."""

from collections.abc import Iterator
from typing import Any, Final

from surgery.model.anatomy import Anatomy

_DEPTH: Final = ("insert", "drop")
_DEEPSTACK: Final = ("deepstack_visual_indexes", "deepstack_layer_map")


def refusals_of(anatomy: Anatomy, config: Any) -> dict[str, str]:
    """Return the name of each unsupported operation with the reason, as a clause.

    Args:
        anatomy: Anatomy of the model, without its refusals.
        config: Config of the model.
    """
    reason = next(_against_other_depths(anatomy, config), "")
    return dict.fromkeys(_DEPTH, reason) if reason else {}


def _against_other_depths(anatomy: Anatomy, config: Any) -> Iterator[str]:
    text = config.get_text_config(decoder=True)
    depth = getattr(text, "num_hidden_layers", None)
    if depth is not None and depth != anatomy.count:
        yield f"its config counts {depth} layers, and its list has {anatomy.count} blocks"
    shared = getattr(text, "num_kv_shared_layers", None)
    if shared:
        yield f"its last {shared} blocks take keys and values from donors chosen by their position"
    sharing = anatomy.sharing()
    if sharing:
        yield f"{len(sharing)} of its blocks share parameters with others, by their position"
    if getattr(text, "cross_attention_layers", None):
        yield "its config lists the positions of the blocks that attend to images"
    if any(_field(config, name) for name in _DEEPSTACK):
        yield "image features are added after blocks that are chosen by their position"


def _field(config: Any, name: str) -> Any:
    """A field of a config or of one of its sub-configs."""
    inner = (getattr(config, key, None) for key in config.sub_configs)
    return next((found for c in (config, *inner) if (found := getattr(c, name, None))), None)
