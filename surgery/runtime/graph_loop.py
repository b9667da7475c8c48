"""Runs the graphs of a path in a decode loop, whatever engine runs each.

torch is used for encoding the prompt alone.
"""

from pathlib import Path

from surgery.runtime.base import Answer, Prompt, end_tokens, refuse_too_long
from surgery.runtime.decode_loop import LORA, LORA_FILE, TOKENIZER, DecodeLoop, parts_on_path
from surgery.runtime.kv_part import Engine
from surgery.runtime.manifest import Manifest, PathName
from surgery.runtime.prompt_chunk import Arrays
from surgery.runtime.vision_part import ImagePart


def open_loop(folder: Path, manifest: Manifest, path: PathName, engine: Engine) -> DecodeLoop:
    """Return a decode loop over the parts of a path.

    Args:
        folder: the export.
        manifest: its manifest.
        path: text or multimodal.
        engine: runs the graphs.
    """
    names = manifest.paths[path]
    lora: Arrays = {}
    if LORA in names:
        from safetensors.numpy import load_file

        lora = load_file(folder / LORA / LORA_FILE)
    return DecodeLoop(engine, parts_on_path(names, manifest.parts), lora)


def generate_answer(
    folder: Path,
    manifest: Manifest,
    loop: DecodeLoop,
    path: PathName,
    prompt: Prompt,
    *,
    vision: ImagePart | None = None,
    trust_remote_code: bool,
) -> Answer:
    """Encode a prompt, continue it, and say it in words.

    Args:
        folder: the export.
        manifest: its manifest.
        loop: a new one.
        path: text or multimodal.
        prompt: what is asked.
        vision: of the path; None where it has no vision part.
        trust_remote_code: whether the tokenizer may run code of its own.

    Raises:
        SurgeryError: A614 where prompt and answer are longer than the cache, R132 for an image
            before a path without a vision tower, R133 for one that doesn't open, M112 for a
            tokenizer that gives ids which the graphs don't know.
    """
    from surgery.data.vocabulary import load_processor, refuse_ids_without_rows
    from surgery.runtime.prompt_encoding import encoded

    processor = load_processor(folder / TOKENIZER, trust_remote_code=trust_remote_code)
    refuse_ids_without_rows(processor, manifest.logits_width(path), folder / TOKENIZER)
    tokenizer = getattr(processor, "tokenizer", processor)
    inputs = encoded(processor if vision else tokenizer, prompt, path)
    ids = inputs["input_ids"][0].tolist()
    refuse_too_long(len(ids), prompt.new_tokens, loop.context, "graphs")
    features = vision.features(inputs["pixel_values"]) if vision and prompt.images else None
    made = loop.generate(ids, prompt.new_tokens, end_tokens(folder / TOKENIZER), features)
    text: str = tokenizer.decode(made, skip_special_tokens=True)
    return Answer(path, tuple(ids), tuple(made), text)
