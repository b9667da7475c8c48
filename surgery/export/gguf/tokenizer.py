"""A byte-level BPE tokenizer as GGUF metadata.

llama.cpp splits text before BPE by rules that it knows by name. A tokenizer's own rule is compared
with these, and one of another rule is refused: it would split text otherwise without an error.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE: Final = "tokenizer.json"

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_RULES: Final = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}": "qwen2",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}": "llama-bpe",
}
"""llama.cpp's name of a rule, by the regular expression in tokenizer.json (`llama-vocab.cpp`)."""


def add_tokenizer(writer: "GGUFWriter", folder: Path, rows: int) -> None:
    """Add a model's tokenizer to a GGUF file's metadata.

    Args:
        writer: Of the file.
        folder: Folder with tokenizer.json and its configs.
        rows: Rows of the embedding; ids without a token are `[PAD…]`, and never read from text.

    Raises:
        SurgeryError: A631, where llama.cpp has no tokenizer like it.
    """
    from gguf import SpecialVocab, TokenType

    # it warns of templates for pairs of texts, which a decoder is never given
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    content = _content(folder)
    vocabulary: dict[str, int] = content["model"]["vocab"]
    added = {token["id"]: token for token in content.get("added_tokens", ())}
    tokens = {number: token for token, number in vocabulary.items()}
    tokens |= {number: token["content"] for number, token in added.items()}
    types = [
        TokenType.UNUSED
        if number not in tokens
        else TokenType.NORMAL
        if number not in added
        else TokenType.CONTROL
        if added[number]["special"]
        else TokenType.USER_DEFINED
        for number in range(rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_rule(content, folder))
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(types)
    SpecialVocab(folder, load_merges=True, n_vocab=rows).add_to_gguf(writer, quiet=True)


def refuse_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that can't be written.

    Raises:
        SurgeryError: A631.
    """
    _rule(_content(folder), folder)


def _content(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    if not file.is_file():
        raise SurgeryError(diagnostic("A631.missing", file=file))
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _rule(content: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name of a tokenizer's rule."""
    file, model = folder / FILE, content["model"]
    before = content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise SurgeryError(diagnostic("A631.kind", file=file, kind=model["type"]))
    *splits, last = steps
    normalizer = (content.get("normalizer") or {}).get("type", "NFC")
    is_bytes = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    rule = None
    if is_bytes and normalizer == "NFC" and not splits and last.get("use_regex", True):
        rule = "gpt-2"
    elif is_bytes and normalizer == "NFC" and len(splits) == 1 and not last.get("use_regex", True):
        rule = _split(splits[0])
    if rule is None or bool(model.get("ignore_merges")) > (rule == "llama-bpe"):
        raise SurgeryError(diagnostic("A631.rule", file=file))
    return rule


def _split(step: dict[str, Any]) -> str | None:
    is_plain = step.get("behavior") == "Isolated" and not step.get("invert")
    if step.get("type") != "Split" or not is_plain:
        return None
    return _RULES.get(step["pattern"].get("Regex", ""))
