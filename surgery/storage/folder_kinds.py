"""The kind of a folder that the user named, and existing paths with similar names."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import close_names, suggestion
from surgery.storage.file_names import ADAPTER_CONFIG, MANIFEST_FILE, PLAN_FILE

_NEAREST: Final = 3


class FolderKind(NamedTuple):
    """A description of a kind of folder, and of the commands that take it."""

    what: str
    taken_by: str


_BY_FILE: Final = {
    MANIFEST_FILE: FolderKind("an export", "`surgery run` and `evaluate` take the folder"),
    PLAN_FILE: FolderKind(
        "an adapter",
        "`surgery verify`, `evaluate`, `export`, `lint` and `train` take the folder",
    ),
    "points.json": FolderKind("a sweep", "name the `adapter` in one of its numbered folders"),
    ADAPTER_CONFIG: FolderKind(
        "an adapter of plain PEFT",
        "`surgery` opens those that `surgery apply` and `save_adapter` write, a plan.json among "
        "them, and `save_pretrained` writes none",
    ),
    "config.json": FolderKind("a checkpoint", "name it in `model=`"),
}


def kind_of(folder: Path) -> FolderKind | None:
    """The kind of a folder, by the first known file in it; None where there is none."""
    return next((kind for name, kind in _BY_FILE.items() if os.path.isfile(folder / name)), None)


def is_folder(path: Path) -> bool:
    """Whether a folder exists; False, too, for names that are too long or can't be read."""
    return os.path.isdir(path)


def near_paths(typed: str | Path, wanted: Callable[[Path], bool] = is_folder) -> list[str]:
    """Existing paths that are most similar to a missing one, as the user would type them.

    The first part of the path that is missing is compared with its siblings; the rest must exist.

    Args:
        typed: Path that doesn't exist.
        wanted: Filter of the suggestions; folders by default.
    """

    def exists(path: Path) -> bool:
        return is_folder(path) or wanted(path)

    parts = Path(os.path.expanduser(typed)).parts
    missing = next((n for n in range(len(parts)) if not exists(Path(*parts[: n + 1]))), None)
    if missing is None:
        return []
    parent = Path(*parts[:missing])
    try:
        siblings = {f.name.lower(): f.name for f in parent.iterdir() if exists(f)}
    except OSError:
        return []
    close = close_names(parts[missing].lower(), siblings, _NEAREST)
    found = [Path(parent, siblings[name], *parts[missing + 1 :]) for name in close]
    return [str(path) for path in found if wanted(path)]


def why_none(folder: Path, file: str, error: object) -> str:
    """Why a folder isn't of the expected kind: missing, of another kind, or unreadable.

    Args:
        folder: Path as the user typed it.
        file: Name of the file by which the expected kind is known.
        error: The error from reading that file.
    """
    if not is_folder(folder):
        return "it is a file" if os.path.exists(folder) else "there is no such folder"
    if not os.path.lexists(folder / file):
        kind = kind_of(folder)
        return f"it is {kind.what}; {kind.taken_by}" if kind else f"it has no {file}"
    return f"its {file} can't be read: {error}"


def did_you_mean(
    typed: str | Path, otherwise: str = "", wanted: Callable[[Path], bool] = is_folder
) -> str:
    """A fix that names similar paths, where there are any, before the usual one.

    Args:
        typed: Path that doesn't exist.
        otherwise: The usual fix.
        wanted: Filter of the suggestions; folders by default.
    """
    return " ".join(filter(None, (suggestion(near_paths(typed, wanted)), otherwise)))


def refuse_export(folder: Path) -> None:
    """Refuse an export where an adapter is wanted.

    Raises:
        SurgeryError: A402.
    """
    if not os.path.isfile(folder / MANIFEST_FILE):
        return
    raise SurgeryError(diagnostic("A402.export", folder=folder, manifest_file=MANIFEST_FILE))
