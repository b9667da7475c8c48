"""Runs `ort-genai` exports with ONNX Runtime GenAI on the CPU."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.runtime.base import Answer, Prompt, Runner, end_tokens
from surgery.runtime.genai.override_file import ADAPTER_FILE, CONFIG_FILE, EXTRA
from surgery.runtime.manifest import Manifest, PathName


class OrtGenaiRunner(Runner):
    """Opens the folder, with the adapter file switched on for the multimodal path."""

    name: ClassVar[str] = "ort-genai"

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
            SurgeryError: A614 where prompt and answer are longer than the model's context, A639
                without onnxruntime-genai.
        """
        from surgery.data.vocabulary import load_processor
        from surgery.runtime.prompt_encoding import encoded

        model_folder = folder / manifest.paths[path][0]
        model = open_model(model_folder)
        processor = load_processor(model_folder, trust_remote_code=trust_remote_code)
        tokenizer = getattr(processor, "tokenizer", processor)
        ids = encoded(tokenizer, prompt, path)["input_ids"][0].tolist()
        config = json.loads((model_folder / CONFIG_FILE).read_bytes())
        context = config["model"]["context_length"]
        if len(ids) + prompt.new_tokens > context:
            new = prompt.new_tokens
            raise SurgeryError(diagnostic("A614.model", prompt=len(ids), new=new, context=context))
        adapter = model_folder / ADAPTER_FILE if path == "multimodal" else None
        made = generate(model, ids, prompt.new_tokens, end_tokens(model_folder), adapter)
        text: str = tokenizer.decode(made, skip_special_tokens=True)
        return Answer(path, tuple(ids), tuple(made), text)


def open_model(folder: Path) -> Any:
    """Open a folder with genai_config.json.

    Raises:
        SurgeryError: A639 without onnxruntime-genai.
    """
    try:
        import onnxruntime_genai as genai
    except ImportError as error:
        raise SurgeryError(diagnostic("A639", install_line=install_line(EXTRA))) from error
    return genai.Model(str(folder))


def generate(
    model: Any, ids: list[int], new_tokens: int, ends: Collection[int], adapter: Path | None = None
) -> list[int]:
    """Continue a prompt with the likeliest token each time.

    Args:
        model: from `open_model`.
        ids: of the prompt.
        new_tokens: at most.
        ends: ids after which nothing comes.
        adapter: file that overrides initializers; None for the base.
    """
    import onnxruntime_genai as genai

    params = genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(ids) + new_tokens)
    generator = genai.Generator(model, params)
    if adapter:
        adapters = genai.Adapters(model)
        adapters.load(str(adapter), "multimodal")
        generator.set_active_adapter(adapters, "multimodal")
    generator.append_tokens(ids)
    made: list[int] = []
    while len(made) < new_tokens and not (made and made[-1] in ends) and not generator.is_done():
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return made
