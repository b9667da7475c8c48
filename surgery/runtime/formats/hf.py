"""Runs `hf` and `peft-lora` exports with transformers, and with PEFT where a path has an adapter.

Imports torch at the top: nothing reaches it before a model is run.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch

from surgery.data.vocabulary import embedding_rows, load_processor, refuse_ids_without_rows
from surgery.model.loading import load_base
from surgery.runtime.base import Answer, Prompt, Runner
from surgery.runtime.manifest import Manifest, PathName
from surgery.runtime.prompt_encoding import encoded


class HfRunner(Runner):
    """Loads the parts of a path and generates."""

    name: ClassVar[str] = "hf"

    def run(
        self,
        folder: Path,
        manifest: Manifest,
        path: PathName,
        prompt: Prompt,
        *,
        trust_remote_code: bool,
    ) -> Answer:
        """Generate greedily on a path; see `Runner.run`."""
        model_folder = folder / manifest.paths[path][0]
        processor = load_processor(model_folder, trust_remote_code=trust_remote_code)
        inputs = encoded(processor, prompt, path)
        model = open_path(folder, manifest, path, trust_remote_code=trust_remote_code)
        refuse_ids_without_rows(processor, embedding_rows(model), model_folder)
        made = _generate(model, inputs, prompt.new_tokens)
        tokenizer = getattr(processor, "tokenizer", processor)
        text: str = tokenizer.decode(made, skip_special_tokens=True)
        return Answer(path, tuple(inputs["input_ids"][0].tolist()), tuple(made), text)


class PeftLoraRunner(HfRunner):
    """The same, with the adapter on the multimodal path."""

    name: ClassVar[str] = "peft-lora"


def open_path(
    folder: Path, manifest: Manifest, path: PathName, *, trust_remote_code: bool = False
) -> Any:
    """Load the model of a path, with its adapter where it has one.

    Args:
        folder: the export.
        manifest: its manifest.
        path: text or multimodal.
        trust_remote_code: whether the model may run code of its own.
    """
    first, *adapters = manifest.paths[path]
    model: Any = load_base(str(folder / first), trust_remote_code=trust_remote_code)
    for adapter in adapters:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder / adapter))
    return model.to(torch.accelerator.current_accelerator() or "cpu").eval()


@torch.no_grad()
def _generate(model: Any, inputs: Any, new_tokens: int) -> list[int]:
    pads = (model.generation_config.pad_token_id, model.generation_config.eos_token_id, 0)
    pad = next(p if isinstance(p, int) else p[0] for p in pads if p is not None)
    inputs = inputs.to(model.device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, pad_token_id=pad)
    found: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return found
