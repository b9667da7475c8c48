"""Runs `executorch` exports in ExecuTorch's runtime, on the CPU by XNNPACK.

torch carries the tokens in and the logits out; what is computed is in the program.
"""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from surgery.runtime.base import Answer, Prompt, Runner, end_tokens, refuse_too_long
from surgery.runtime.executorch_program import EXTRA, Program, require_runtime
from surgery.runtime.manifest import GraphRecord, Manifest, PathName


class ExecutorchRunner(Runner):
    """Loads the program of a path and generates."""

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
            SurgeryError: A614 where prompt and answer are longer than the program's cache, A621
                without ExecuTorch, R132 for an image, M112 for a tokenizer of another model.
        """
        require_runtime()
        from surgery.data.vocabulary import load_processor, refuse_ids_without_rows
        from surgery.runtime.prompt_encoding import encoded

        program, record = open_program(folder, manifest, path)
        model_folder = program.file.parent
        tokenizer = load_processor(model_folder, trust_remote_code=trust_remote_code)
        refuse_ids_without_rows(tokenizer, manifest.logits_width(path), model_folder)
        ids = encoded(tokenizer, prompt, path)["input_ids"][0].tolist()
        refuse_too_long(len(ids), prompt.new_tokens, record.window, "programs")
        made = generate_tokens(
            program, ids, prompt.new_tokens, end_tokens(model_folder), record.tokens
        )
        text: str = tokenizer.decode(made, skip_special_tokens=True)
        return Answer(path, tuple(ids), tuple(made), text)


def open_program(folder: Path, manifest: Manifest, path: PathName) -> tuple[Program, GraphRecord]:
    """Return the program of a path, not loaded yet, and what the manifest says of it.

    Args:
        folder: the export.
        manifest: its manifest.
        path: text or multimodal.
    """
    part = manifest.paths[path][0]
    name, record = next((f.name, f.graph) for f in manifest.parts[part].files if f.graph)
    return Program(folder / part / name), record


def generate_tokens(
    program: Program, ids: list[int], new_tokens: int, ends: Collection[int], step: int
) -> list[int]:
    """Continue a prompt greedily.

    Args:
        program: of a path; what its cache holds is written over.
        ids: of the prompt.
        new_tokens: of the answer, at most.
        ends: the ids that end it, the last of the answer.
        step: tokens that the program reads at once.
    """
    made: list[int] = []
    for start in range(0, len(ids), step):
        logits = program.logits(ids[start : start + step], start)
    while True:
        made.append(int(logits[-1].argmax()))
        if len(made) == new_tokens or made[-1] in ends:
            return made
        logits = program.logits(made[-1:], len(ids) + len(made) - 1)
