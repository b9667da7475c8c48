"""Runs `onnx` exports with onnxruntime on the CPU.

torch is used for encoding the prompt alone, by the code that other runners share.
"""

from pathlib import Path
from typing import ClassVar

from surgery.runtime.base import Answer, Prompt, Runner, ends_of, refuse_too_long
from surgery.runtime.cpu_engine import OnCpu
from surgery.runtime.decode_loop import LORA, LORA_FILE, TOKENIZER, DecodeLoop, parts_of
from surgery.runtime.kv_part import Engine
from surgery.runtime.manifest import Manifest, PathName
from surgery.runtime.prompt_chunk import Arrays
from surgery.runtime.vision_part import ImagePart, image_part


class OnnxRunner(Runner):
    """Loads the graphs of a path and generates."""

    word: ClassVar[str] = "onnx"

    def run(
        self,
        folder: Path,
        manifest: Manifest,
        path: PathName,
        prompt: Prompt,
        *,
        trust_remote_code: bool,
    ) -> Answer:
        """Generate greedily on a path; see `Runner.run`.

        Raises:
            SurgeryError: A614 where prompt and answer are longer than the graphs' cache, A615
                without onnxruntime.
        """
        engine = OnCpu(folder)
        loop = open_loop(folder, manifest, path, engine)
        eyes = image_part(engine, manifest.paths[path], manifest.parts)
        return generate(folder, loop, path, prompt, eyes=eyes, trust_remote_code=trust_remote_code)


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
    return DecodeLoop(engine, parts_of(names, manifest.parts), lora)


def generate(
    folder: Path,
    loop: DecodeLoop,
    path: PathName,
    prompt: Prompt,
    *,
    eyes: ImagePart | None = None,
    trust_remote_code: bool,
) -> Answer:
    """Encode a prompt, continue it, and say it in words.

    Args:
        folder: the export.
        loop: a new one.
        path: text or multimodal.
        prompt: what is asked.
        eyes: of the path; None where it sees nothing.
        trust_remote_code: whether the tokenizer may run code of its own.

    Raises:
        SurgeryError: A614 where prompt and answer are longer than the cache, R132 for an image
            before a path without eyes, R133 for one that doesn't open.
    """
    from surgery.data.vocabulary import load_processor
    from surgery.runtime.formats.hf import encoded

    processor = load_processor(folder / TOKENIZER, trust_remote_code=trust_remote_code)
    tokenizer = getattr(processor, "tokenizer", processor)
    inputs = encoded(processor if eyes else tokenizer, prompt, path)
    ids = inputs["input_ids"][0].tolist()
    refuse_too_long(len(ids), prompt.new_tokens, loop.context, "graphs")
    features = eyes.features(inputs["pixel_values"]) if eyes and prompt.images else None
    made = loop.generate(ids, prompt.new_tokens, ends_of(folder / TOKENIZER), features)
    text: str = tokenizer.decode(made, skip_special_tokens=True)
    return Answer(path, tuple(ids), tuple(made), text)
