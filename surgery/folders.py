"""What lies at a path that was typed: which kind of folder it is, and which are named alike."""

import difflib
import os
from pathlib import Path
from typing import Final, NamedTuple

from surgery.wording import suggestion

_NEAREST: Final = 3


class FolderKind(NamedTuple):
    """What a folder is, in words, and what takes it."""

    what: str
    taken_by: str


_BY_FILE: Final = {
    "manifest.json": FolderKind("an export", "`surgery run` and `evaluate` take the folder"),
    "plan.json": FolderKind(
        "an adapter",
        "`surgery verify`, `evaluate`, `export`, `lint` and `train` take the folder",
    ),
    "points.json": FolderKind("a sweep", "name the `adapter` in one of its numbered folders"),
    "adapter_config.json": FolderKind(
        "an adapter of plain PEFT",
        "`surgery` opens those that `surgery apply` and `save_adapter` write, a plan.json among "
        "them, and `save_pretrained` writes none",
    ),
    "config.json": FolderKind("a checkpoint", "name it in `model=`"),
}


def kind_of(folder: Path) -> FolderKind | None:
    """What a folder is, by the first file that says so; None where nothing does."""
    return next((kind for name, kind in _BY_FILE.items() if os.path.isfile(folder / name)), None)


def near_folders(typed: str | Path) -> list[str]:
    """The folders whose path is nearest to one that isn't there, as the user would type them.

    The first part that is missing is compared with what lies beside it; the rest must be there.
    """
    parts = Path(os.path.expanduser(typed)).parts
    missing = next((n for n in range(len(parts)) if not _is_folder(Path(*parts[: n + 1]))), None)
    if missing is None:
        return []
    above = Path(*parts[:missing])
    try:
        beside = {f.name.lower(): f.name for f in above.iterdir() if _is_folder(f)}
    except OSError:
        return []
    close = difflib.get_close_matches(parts[missing].lower(), beside, _NEAREST)
    found = [Path(above, beside[name], *parts[missing + 1 :]) for name in close]
    return [str(folder) for folder in found if _is_folder(folder)]


def why_none(folder: Path, file: str, error: object) -> str:
    """Why a folder isn't the kind that a file of it says: absent, another one, or unreadable."""
    if not _is_folder(folder):
        return "there is no such folder"
    kind = kind_of(folder)
    if kind and not os.path.exists(folder / file):
        return f"it is {kind.what}; {kind.taken_by}"
    return f"its {file} can't be read: {error}"


def did_you_mean(typed: str | Path, otherwise: str = "") -> str:
    """A remedy that names the nearest folders, where there are any, before the usual one."""
    return " ".join(filter(None, (suggestion(near_folders(typed)), otherwise)))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # False, too, for names that are too long or that can't be read
