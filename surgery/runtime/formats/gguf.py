"""Runs `gguf` exports with llama.cpp on the CPU, as the package `xllamacpp` has it.

The base is loaded once with the adapter at hand, and a request switches the adapter on or off, as
llama.cpp's server does it by the field `lora` of a request.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.request import Request, urlopen

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.runtime.base import Answer, Prompt, Runner
from surgery.runtime.manifest import Manifest, PathName
from surgery.storage.file_names import GGUF_ADAPTER, GGUF_MODEL

EXTRA: Final = "gguf"
_STEP: Final = 512
"""Tokens that llama.cpp reads at once."""


class GgufRunner(Runner):
    """Loads the files of a path and generates."""

    name: ClassVar[str] = EXTRA

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
            SurgeryError: A633 without llama.cpp, R132 for an image.
        """
        if find_spec("xllamacpp") is None:
            raise SurgeryError(diagnostic("A633.llama_cpp", install_line=install_line(EXTRA)))
        from surgery.data.vocabulary import load_processor
        from surgery.runtime.prompt_encoding import encoded

        first, *adapters = manifest.paths[path]
        tokenizer = load_processor(folder / first, trust_remote_code=trust_remote_code)
        ids: list[int] = encoded(tokenizer, prompt, path)["input_ids"][0].tolist()
        files = [folder / part / GGUF_ADAPTER for part in adapters]
        model = LlamaCpp(folder / first / GGUF_MODEL, files, len(ids) + prompt.new_tokens)
        made = model.generate(ids, prompt.new_tokens, scale=1.0)
        text: str = tokenizer.decode(made, skip_special_tokens=True)
        return Answer(path, tuple(ids), tuple(made), text)


class LlamaCpp:
    """llama.cpp with one model and its adapters.

    Args:
        model: Path of the GGUF file.
        adapters: Paths of its adapters.
        context: Largest number of tokens of prompt and answer together.
        threads: Number of threads; as many as there are cores by default.
    """

    def __init__(
        self, model: Path, adapters: Sequence[Path], context: int, threads: int | None = None
    ) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = context + 1
        params.n_batch = params.n_ubatch = _STEP
        params.n_parallel = 1
        params.warmup = False
        params.cpuparams.poll = params.cpuparams_batch.poll = 0
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        # float32 throughout, so that a float32 file gives the reference's words
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        found = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
        params.lora_adapters = found
        self._adapters = len(found)
        self._server = xllamacpp.Server(params)

    def generate(
        self,
        ids: Sequence[int],
        new_tokens: int,
        *,
        scale: float,
        cache: bool = False,
        ignore_end: bool = False,
    ) -> list[int]:
        """Continue a prompt greedily.

        Args:
            ids: Token ids of the prompt.
            new_tokens: Largest number of tokens of the answer.
            scale: Of each adapter: 1 switches it on, 0 off.
            cache: Whether what an earlier prompt left in the cache is used; False by default.
            ignore_end: Whether the answer goes on where the model would end it; False by default.
        """
        request: dict[str, Any] = {
            "prompt": list(ids),
            "n_predict": new_tokens,
            "temperature": 0.0,
            "return_tokens": True,
            "cache_prompt": cache,
            "ignore_eos": ignore_end,
            "lora": [{"id": number, "scale": scale} for number in range(self._adapters)],
        }
        return [int(token) for token in self.post("completion", request)["tokens"]]

    def post(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Ask llama.cpp's server, which listens on this machine alone.

        Args:
            name: Path of the request, such as `completion`.
            content: Its JSON.
        """
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(f"{self._server.listening_address}/{name}", body, headers)) as answer:
            found: dict[str, Any] = json.load(answer)
        return found
