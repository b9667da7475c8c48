"""Runs `hf` exports with transformers, and with PEFT where LoRA was kept.

Imports torch at the top: nothing reaches it before a model is run.
"""

from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from surgery.data.base import IMAGE, Place, Record, Turn
from surgery.data.chat.turns import special_token
from surgery.data.encoder import Encoder
from surgery.data.images import opened
from surgery.data.vocabulary import load_processor, refuse_ids_without_rows
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.loading import load_base
from surgery.runtime.base import Answer, Prompt, Runner
from surgery.runtime.manifest import Manifest, PathName


class HfRunner(Runner):
    """Loads the parts of a path and generates."""

    word: ClassVar[str] = "hf"

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
        home = folder / manifest.paths[path][0]
        processor = load_processor(home, trust_remote_code=trust_remote_code)
        inputs = encoded(processor, prompt, path)
        model = open_path(folder, manifest, path, trust_remote_code=trust_remote_code)
        refuse_ids_without_rows(processor, model, home)
        made = _generate(model, inputs, prompt.new_tokens)
        tokenizer = getattr(processor, "tokenizer", processor)
        text: str = tokenizer.decode(made, skip_special_tokens=True)
        return Answer(path, tuple(inputs["input_ids"][0].tolist()), tuple(made), text)


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


def encoded(processor: Any, prompt: Prompt, path: PathName) -> Any:
    """Encode a prompt as `generate` takes it.

    Args:
        processor: of the model, or a tokenizer.
        prompt: what is asked.
        path: for what is said of an image that can't be seen.

    Returns:
        `input_ids` and `attention_mask` (1, tokens), and what the model takes of images.

    Raises:
        SurgeryError: R132 for an image before a model without eyes, R133 for one that doesn't open,
            D104 for an empty prompt, D112 to D116 for one that the model can't be asked.
    """
    encoder = Encoder(processor, length=0)
    if prompt.images and not encoder.sees:
        raise SurgeryError(_blind(path))
    for file in prompt.images:
        _refuse_unopened(file)
    turn = Turn("user", IMAGE * len(prompt.images) + prompt.text)
    asked = Record(Place(Path("--prompt"), 0), (turn,), tuple(prompt.images))
    if encoder.sees and IMAGE in prompt.text:
        raise SurgeryError(special_token(asked.place, IMAGE))
    is_chat = encoder.has_template if prompt.chat is None else prompt.chat
    inputs = encoder.questions([(asked, 1)]) if is_chat else encoder.raw(asked)
    if inputs["input_ids"].shape[-1] == 0:
        raise SurgeryError(_EMPTY)
    return inputs


def _refuse_unopened(file: Path) -> None:
    try:
        opened([file], Place(file, 0))
    except SurgeryError as error:
        raise SurgeryError(_no_picture(file, error.diagnostics[0].why)) from error


_EMPTY: Final = Diagnostic(
    code="D104",
    what="the prompt has no token",
    why="an answer goes on from what is asked, and the model has no token to begin with",
    fix="write something into `--prompt`",
)


@torch.no_grad()
def _generate(model: Any, inputs: Any, new_tokens: int) -> list[int]:
    pads = (model.generation_config.pad_token_id, model.generation_config.eos_token_id, 0)
    pad = next(p if isinstance(p, int) else p[0] for p in pads if p is not None)
    inputs = inputs.to(model.device)
    said = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, pad_token_id=pad)
    found: list[int] = said[0, inputs["input_ids"].shape[1] :].tolist()
    return found


def _blind(path: PathName) -> Diagnostic:
    return Diagnostic(
        code="R132",
        what=f"the {path} path sees no images",
        why="its model has no vision tower"
        + (": text runs on the language model alone" if path == "text" else ""),
        fix="leave `--image` out; pictures go through the multimodal path of a model that sees",
    )


def _no_picture(file: Path, why: str) -> Diagnostic:
    return Diagnostic(
        code="R133",
        what=f"the image `{file}` can't be opened",
        why=why,
        fix="give `--image` the path of a PNG or JPEG file",
    )
