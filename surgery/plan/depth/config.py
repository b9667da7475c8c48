"""The config of a decoder with another depth.

Each per-block field is rewritten: the count, lists and strings with one entry for each block, lists
of block indices. `surgery/plan/depth/build_check.py` then checks that transformers builds the
wanted blocks from it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

Config = dict[str, Any]
_POSITIONS: Final = re.compile(r"(layers|_idxs?|_indices|_indexes|layer_ids)$")
_PATTERN: Final = re.compile(r"pattern|layers_block_type")
_COUNTS: Final = re.compile(r"layer|block|depth")
_BLOCK_COUNTS: Final = re.compile(r"first_k|dense_layers$|max_window_layers|layer_start_index")
_NEVER_PER_BLOCK: Final = re.compile(r"token_ids?$|^architectures$|^id2label$")


def with_depth(
    text: Config, sources: Sequence[int], count: int, depth_keys: Sequence[str]
) -> Config:
    """Return the fields of a decoder's config that another depth changes.

    Args:
        text: Every field of the text model's config, defaults and derived ones too.
        sources: For each block of the new depth, the index of its source in the base.
        count: Number of blocks of the base.
        depth_keys: Names of the fields that count them, from `candidate_depth_keys`.
    """
    changed: Config = dict.fromkeys(depth_keys, len(sources))
    for key, value in text.items():
        if key not in depth_keys and not _NEVER_PER_BLOCK.search(key):
            changed.update((key, new) for new in _resized(key, value, sources, count))
    return changed


def candidate_depth_keys(text: Config, alias: str, count: int) -> list[tuple[str, ...]]:
    """Return the sets of fields that may count the blocks, the likeliest first.

    All candidates together are the likeliest: BART's decoder has its own count, and its cache uses
    the encoder's.

    Args:
        text: Every field of the text model's config.
        alias: Name of `num_hidden_layers` in this config.
        count: Number of blocks of the base.
    """
    candidates = [k for k, v in text.items() if v == count and type(v) is int and _COUNTS.search(k)]
    likely = [key for key in (alias, "decoder_layers") if key in candidates]
    return list(dict.fromkeys([tuple(candidates), *((key,) for key in (*likely, *candidates)), ()]))


def _resized(key: str, value: Any, sources: Sequence[int], count: int) -> Iterator[Any]:
    """The new value of a per-block field; nothing for any other."""
    if isinstance(value, str) and len(value) == count and _PATTERN.search(key):
        yield "".join(value[source] for source in sources)
    elif type(value) is int and 0 < value < count and _BLOCK_COUNTS.search(key):
        yield sum(source < value for source in sources)
    elif type(value) is int and 0 < value < count and key.endswith("layer_end_index"):
        yield sum(source <= value for source in sources) - 1
    elif not isinstance(value, list | tuple):
        return
    elif _are_positions(key, value, count):
        yield [position for position, source in enumerate(sources) if source in value]
    elif len(value) == count:
        yield [value[source] for source in sources]


def _are_positions(key: str, value: Sequence[Any], count: int) -> bool:
    """Block indices are distinct integers; a list of 0 and 1 for each block is not one of them."""
    if not value or not _POSITIONS.search(key) or any(type(item) is not int for item in value):
        return False
    return len(set(value)) == len(value)
