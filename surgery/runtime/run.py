"""Run what was exported, by its manifest."""

import os
from collections.abc import Sequence
from pathlib import Path

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import close_names
from surgery.model.quiet import quiet
from surgery.runtime.base import Answer, Prompt, known_runners
from surgery.runtime.manifest import Manifest, PathName, read_manifest


@quiet()
def run_export(
    folder: str | os.PathLike[str],
    path: PathName,
    prompt: str,
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    chat: bool | None = None,
    new_tokens: int = 32,
    trust_remote_code: bool = False,
) -> Answer:
    """Generate greedily on one path of an export.

    Args:
        folder: what `surgery export` wrote.
        path: text or multimodal.
        prompt: what is asked.
        images: files to show, before the prompt.
        chat: whether the prompt is a user's turn in the chat template; where it is None, it is if
            the model has one.
        new_tokens: of the answer, at most.
        trust_remote_code: whether the model may run code of its own.

    Raises:
        SurgeryError: A601 where the folder is no export, A605 where it isn't as it was written,
            R132 for an image that the path can't see.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _refuse_damaged(folder, manifest, path)
    runner = known_runners().get(manifest.format)
    if runner is None:
        raise SurgeryError(_no_runner(folder, manifest.format))
    request = Prompt(prompt, tuple(map(Path, images)), chat, new_tokens)
    return runner.run(folder, manifest, path, request, trust_remote_code=trust_remote_code)


def _refuse_damaged(folder: Path, manifest: Manifest, path: PathName) -> None:
    """Compare the files of a path with the manifest by their sizes, which costs no reading."""
    for part in manifest.paths[path]:
        for file in manifest.parts[part].files:
            file_path = folder / part / file.name
            found = file_path.stat().st_size if file_path.is_file() else None
            if found != file.bytes:
                raise SurgeryError(_damaged(file_path, file.bytes, found))


def _damaged(file_path: Path, expected: int, found: int | None) -> Diagnostic:
    there = "it is not there" if found is None else f"it has {found:,} bytes"
    return diagnostic("A605", file_path=file_path, found=there, expected=expected)


def _no_runner(folder: Path, form: str) -> Diagnostic:
    known = list(known_runners())
    return diagnostic(
        "A601.unknown_format",
        folder=folder,
        format=form,
        known=list(close_names(form, known) or known),
    )
