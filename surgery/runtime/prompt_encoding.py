"""A prompt as a model takes it: ids, and the pixels of its images."""

from pathlib import Path
from typing import Any, Final

from surgery.data.base import IMAGE, Record, RecordLocation, Turn
from surgery.data.chat.turns import special_token
from surgery.data.encoder import Encoder
from surgery.data.images import open_images
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.runtime.base import Prompt
from surgery.runtime.manifest import PathName


def encoded(processor: Any, prompt: Prompt, path: PathName) -> Any:
    """Encode a prompt as `generate` takes it.

    Args:
        processor: of the model, or a tokenizer.
        prompt: what is asked.
        path: for what is said of an image that can't be seen.

    Returns:
        `input_ids` and `attention_mask` (1, tokens), and what the model takes of images.

    Raises:
        SurgeryError: R132 for an image before a model without a vision tower, R133 for one that
            doesn't open, D104 for an empty prompt, D112 to D116 for one that the model can't be
            asked.
    """
    encoder = Encoder(processor, length=0)
    if prompt.images and not encoder.is_multimodal:
        raise SurgeryError(
            diagnostic(
                "R132",
                path=path,
                because=": text runs on the language model alone" if path == "text" else "",
            )
        )
    for file in prompt.images:
        _refuse_unopened(file)
    turn = Turn("user", IMAGE * len(prompt.images) + prompt.text)
    record = Record(RecordLocation(Path("--prompt"), 0), (turn,), tuple(prompt.images))
    if encoder.is_multimodal and IMAGE in prompt.text:
        raise SurgeryError(special_token(record.location, IMAGE))
    is_chat = encoder.has_template if prompt.chat is None else prompt.chat
    inputs = encoder.prompts([(record, 1)]) if is_chat else encoder.raw(record)
    if inputs["input_ids"].shape[-1] == 0:
        raise SurgeryError(_EMPTY)
    return inputs


def _refuse_unopened(file: Path) -> None:
    try:
        open_images([file], RecordLocation(file, 0))
    except SurgeryError as error:
        raise SurgeryError(diagnostic("R133", file=file, why=error.diagnostics[0].why)) from error


_EMPTY: Final = diagnostic("D104.no_token")
