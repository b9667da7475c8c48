"""The token that stands for an image in a prompt: one that the tokenizer has, or an unused id.

The embedding is never resized, because that would change the decoder: an id after the tokenizer's
last one is free where the embedding has a row for it.
"""

import re
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line

_KNOWN: Final = re.compile(r"<\|?(image|image_pad|image_soft_token|img_context)\|?>", re.IGNORECASE)
_SPARE: Final = re.compile(r"<[|\[]?(reserved|unused|extra_id|dummy)\w*[|\]]?>")
NEW_TOKEN: Final = "<image>"


def read_tokenizer(folder: Path, source: str) -> Any:
    """Return a decoder's tokenizer.

    Raises:
        SurgeryError: M124, where it has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each kind of tokenizer misses its files in its own way
        raise SurgeryError(
            _no_token(source, f"its tokenizer can't be read: {first_line(error)}")
        ) from error


def take_image_token(tokenizer: Any, rows: int, source: str) -> tuple[str, int]:
    """Choose the token that stands for an image, and add it to the tokenizer if it is new.

    Tokens that are meant for images come first, such as Qwen's `<|image_pad|>`; then reserved ones,
    such as Llama's; then `<image>`, added at the next free id.

    Args:
        tokenizer: Tokenizer of the decoder; `<image>` may be added to it.
        rows: Number of rows of the decoder's embedding.
        source: Name of the decoder, for diagnostics.

    Returns:
        The token and its id.

    Raises:
        SurgeryError: M124, where no id is left.
    """
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if i < rows}
    for pattern in (_KNOWN, _SPARE):
        for token, number in special.items():
            if pattern.fullmatch(token):
                return token, number
    if len(tokenizer) >= rows:
        why = f"all {rows} rows of its embedding have a token, and none of them is reserved"
        raise SurgeryError(_no_token(source, why))
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [NEW_TOKEN]}, replace_extra_special_tokens=False
    )
    number = int(tokenizer.convert_tokens_to_ids(NEW_TOKEN))
    if number >= rows:
        why = f"`{NEW_TOKEN}` would be token {number}, and its embedding has {rows} rows"
        raise SurgeryError(_no_token(source, why))
    return NEW_TOKEN, number


def _no_token(source: str, why: str) -> Diagnostic:
    return diagnostic("M124", source=source, why=why, key="model")
