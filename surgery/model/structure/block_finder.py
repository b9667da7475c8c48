"""Find the list of decoder blocks of a torch model, and never that of a vision or audio tower.

Source: a survey of all decoders of transformers 5.23 (docs/decisions/0008-any-decoder.md).
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError

if TYPE_CHECKING:
    from torch import nn

    Entry = tuple[str, nn.ModuleList]

_OTHER_TOWERS: Final = re.compile(
    r"vision|visual|image_enc|audio|speech|qformer|perceiver|mtp|altup|patcher|local_"
)
_ENCODER: Final = re.compile(r"(^|\.)encoder\.")


def find_blocks(model: "nn.Module", source: str, known: str = "") -> "Entry":
    """Return the module name and the list of the decoder's blocks.

    Of the lists that are not nested in another or in another tower, those are preferred that are
    under the text model's config, then those with the length in that config, then those that are
    not in an encoder, and of these the one with most parameters.

    Args:
        model: Model on any device.
        source: Name of the model, for the message.
        known: Module name of the list, where structure would pick another one; empty by default.

    Raises:
        SurgeryError: M106, if there is none.
    """
    lists: list[Entry] = list(_outer_lists(model))
    if known:
        lists = [entry for entry in lists if entry[0] == known]
    text = text_config(model)
    of_text = [e for e in lists if type(_config_above(model, e[0])) is type(text)] or lists
    depth = getattr(text, "num_hidden_layers", None)
    of_depth = [entry for entry in of_text if len(entry[1]) == depth] or of_text
    if not of_depth:
        raise SurgeryError(
            diagnostic("M106.no_blocks", source=source, class_name=type(model).__name__)
        )
    path, blocks = max(of_depth, key=_rank)
    parallel = _parallel(path, blocks, lists)
    if parallel:
        raise SurgeryError(
            diagnostic(
                "M106.parallel",
                source=source,
                class_name=type(model).__name__,
                lists=list(parallel),
            )
        )
    return path, blocks


def text_config(model: "nn.Module") -> Any:
    """The config of the decoder; for a language model the model's own config."""
    config: Any = model.config
    return config.get_text_config(decoder=True)


def _outer_lists(model: "nn.Module") -> Iterator["Entry"]:
    from torch import nn

    found: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if not any(name.startswith(f"{outer}.") for outer in found):
            found.add(name)
            if not _OTHER_TOWERS.search(name):
                yield name, module


def _config_above(model: "nn.Module", name: str) -> Any:
    """The config of the innermost `PreTrainedModel` around a module."""
    from transformers import PreTrainedModel

    parts = name.split(".")
    parents = [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)]
    modules = (model.get_submodule(path) for path in parents)
    return next((m.config for m in modules if isinstance(m, PreTrainedModel)), None)


def _rank(entry: "Entry") -> tuple[bool, bool, int]:
    path, blocks = entry
    parameters = sum(parameter.numel() for parameter in blocks.parameters())
    return not _ENCODER.search(path), _is_of_blocks(blocks), parameters


def _is_of_blocks(blocks: "nn.ModuleList") -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(blocks[0], GradientCheckpointingLayer)


def _parallel(path: str, blocks: "nn.ModuleList", lists: Iterable["Entry"]) -> list[str]:
    """The parallel lists of equal length over which the parts of blocks are spread, if any."""
    parents = path.rpartition(".")[0]
    siblings = [
        name
        for name, other in lists
        if name.rpartition(".")[0] == parents
        and len(other) == len(blocks)
        and list(other.parameters())
    ]
    return [] if len(siblings) == 1 or _is_of_blocks(blocks) else siblings
