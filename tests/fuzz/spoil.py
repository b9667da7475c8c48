"""Spoil what is valid: trees of JSON or YAML by their keys and values, texts by their characters.

The strategies start from something that works, because what is merely random is refused at the
door and tries nothing behind it.
"""

import copy
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from hypothesis import strategies as st

LONG: Final = "a" * 300
"""A name that no file system takes."""

_DEEP: Final = "@deep@"  # stands for brackets that json.dumps can't write itself
_DIGITS: Final = "@digits@"
_NUMBERS: Final = (
    *(0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 2**70, 10**30, -(2**63)),
    *(0.5, 1.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
)
_TEXTS: Final = (
    *("", " ", "x", "null", "true", "1", "1e9", "nan", "on", "???", "é", "\u2028", "\ufeff"),
    *("\ud800", "a\0b", "a\nb", "..", "/", "~", "../..", "/dev/zero", "/dev/null", "C:\\x", LONG),
    *(
        "${knobs.rank}",
        "${x",
        "${oc.env:HOME}",
        "${.}",
        "[bold",
        "[/]",
        "%s",
        "{0}",
        "*",
        "(",
        "\\",
    ),
    *(_DEEP, _DIGITS),
)
_SCALARS: Final = st.sampled_from((None, True, False, *_NUMBERS, *_TEXTS)) | st.text(max_size=6)
VALUES: Final = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_TEXTS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
"""Values of any type, odd ones among them."""


@st.composite
def spoilt(draw: Any, trees: Sequence[Any], words: Sequence[str] = ()) -> Any:
    """One of some trees in which keys were dropped, renamed, added, doubled or given other values.

    Args:
        draw: of hypothesis.
        trees: valid ones.
        words: keys that the format knows, or strings that mean something to it.
    """
    tree = copy.deepcopy(draw(st.sampled_from(trees)))
    keys = st.sampled_from([*words, *_TEXTS[:12], LONG, "\ud800"])
    values = VALUES | st.sampled_from([*words, None])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(_filled(tree)) or [tree]))
        if not at or not isinstance(at, dict | list):
            return draw(values)
        key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        how = draw(st.sampled_from(["drop", "change", "change", "change", "add", "rename", "move"]))
        if how == "drop":
            del at[key]
        elif how == "add" and isinstance(at, dict):
            at[draw(keys)] = draw(values)
        elif how == "rename" and isinstance(at, dict):
            at[draw(keys)] = at.pop(key)
        elif how == "move":
            at[key] = copy.deepcopy(draw(st.sampled_from(list(_filled(tree)))))
        else:
            at[key] = draw(values)
    return tree


def _filled(node: Any) -> Any:
    """Every mapping and list inside of a tree that isn't empty."""
    if isinstance(node, dict | list) and node:
        yield node
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _filled(inner)


@st.composite
def spoilt_json(draw: Any, trees: Sequence[Any], words: Sequence[str] = ()) -> bytes:
    """The bytes of a JSON file that was spoilt as a tree, as a text, or as bytes."""
    tree = draw(spoilt(trees, words))
    text = json.dumps(tree, ensure_ascii=draw(st.booleans()))
    text = re.sub(f'"{_DEEP}"', lambda _: _nested(draw(st.sampled_from([30, 900, 100_000]))), text)
    text = re.sub(f'"{_DIGITS}"', "9" * 5000, text)
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)) == 0:
        twice = draw(st.sampled_from(sorted(tree)))
        text = f"{{{json.dumps(twice)}: {json.dumps(draw(_SCALARS))}, {text[1:]}"
    return draw(spoilt_bytes(text))


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@st.composite
def spoilt_bytes(draw: Any, text: str) -> bytes:
    """The bytes of a text, one time of four cut, of another encoding, or with odd bytes in it."""
    data = text.encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(data)))
    ways = [
        data[:at],
        b"\xef\xbb\xbf" + data,
        text.encode("utf-16", "surrogatepass"),
        text.encode("latin-1", "replace"),
        data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at:],
        draw(st.sampled_from([b"", b"null", b"[]", b"{}", b'"x"', b"3", b"\0" * 64])),
    ]
    return draw(st.sampled_from([*ways, *([data] * 18)]))
