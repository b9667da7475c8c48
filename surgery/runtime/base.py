"""The base of runners: a module in `surgery/runtime/formats` opens the exports of one exporter."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.plugins import classes_in
from surgery.runtime.manifest import Manifest, PathName

_CONFIGS: Final = ("generation_config.json", "config.json")


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Args:
        text: as the user wrote it.
        images: files to show, before the text.
        chat: whether it is a user's turn in the chat template; None lets the model decide, by
            whether it has one.
        new_tokens: of the answer, at most.
    """

    text: str
    images: Sequence[Path] = ()
    chat: bool | None = None
    new_tokens: int = 32


@dataclass(frozen=True)
class Answer:
    """What was generated.

    Args:
        path: on which path.
        prompt: the ids of the prompt.
        tokens: the ids that were generated, greedily.
        text: these in words, without special tokens.
    """

    path: PathName
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str

    def document(self) -> dict[str, Any]:
        """The answer as plain data."""
        return {
            "path": self.path,
            "prompt_tokens": list(self.prompt),
            "tokens": list(self.tokens),
            "text": self.text,
        }


class Runner(ABC):
    """Opens one form of export."""

    name: ClassVar[str]
    """The word of its exporter."""

    @abstractmethod
    def run(
        self,
        folder: Path,
        manifest: Manifest,
        path: PathName,
        prompt: Prompt,
        *,
        trust_remote_code: bool,
    ) -> Answer:
        """Generate greedily on a path.

        Args:
            folder: the export.
            manifest: its manifest.
            path: text or multimodal.
            prompt: what is asked.
            trust_remote_code: whether the model may run code of its own.

        Raises:
            SurgeryError: R132 for an image that the path can't see, R133 for one that doesn't open.
        """


def known_runners() -> dict[str, Runner]:
    """Every runner by its word, found in the folder `surgery/runtime/formats`."""
    classes = classes_in("surgery.runtime.formats", Runner)  # type: ignore[type-abstract]
    return {cls.name: cls() for cls in classes}


def end_tokens(folder: Path) -> Collection[int]:
    """Return the ids that end an answer, as the model's own files name them.

    Args:
        folder: with generation_config.json or config.json.
    """
    file = next(folder / name for name in _CONFIGS if (folder / name).is_file())
    found = json.loads(file.read_bytes()).get("eos_token_id")
    return {found} if isinstance(found, int) else set(found or ())


def refuse_too_long(prompt: int, new: int, context: int, whose: str) -> None:
    """Refuse a prompt whose answer wouldn't fit behind it.

    Args:
        prompt: its tokens.
        new: of the answer, at most.
        context: tokens that the cache has positions for.
        whose: cache it is, such as "graphs".

    Raises:
        SurgeryError: A614.
    """
    if prompt + new > context:
        raise SurgeryError(
            diagnostic("A614.cache", prompt=prompt, new=new, whose=whose, context=context)
        )
