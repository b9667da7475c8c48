"""Which tensors train: from a recipe's `train` and `freeze` to exact names.

A tensor of the base is identified by its full name; a tensor that an operation adds by the
operation's name and the tensor's, because a copy has its original's name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from operator import or_
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.wording import suggest
from surgery.model.anatomy import PARTS, Anatomy
from surgery.operations.base import Operation
from surgery.operations.edits import DropBlock, Edit

_OPTIONAL_PARTS: Final = ("vision", "projector")
Added = tuple[str, str]


@dataclass(frozen=True)
class Selection:
    """A set of trained tensors.

    Args:
        base: Full names of base tensors, trained in place.
        added: (operation, tensor name) of tensors that operations add.
    """

    base: frozenset[str] = frozenset()
    added: frozenset[Added] = frozenset()

    def __or__(self, other: "Selection") -> "Selection":
        return Selection(self.base | other.base, self.added | other.added)

    def __sub__(self, other: "Selection") -> "Selection":
        return Selection(self.base - other.base, self.added - other.added)

    def __bool__(self) -> bool:
        return bool(self.base or self.added)


class Matcher:
    """Matches the patterns in `train` and `freeze` against one model and its edits.

    Args:
        anatomy: Anatomy of the base.
        edits: Edits of the operations.
        operations: All operations by name, those without edits too.
    """

    def __init__(
        self, anatomy: Anatomy, edits: Iterable[Edit], operations: Mapping[str, Operation]
    ) -> None:
        self._anatomy = anatomy
        self._operations = operations
        self._names = {**{name: name for name in anatomy.sizes}, **anatomy.tied}
        self._added: dict[str, list[str]] = {name: [] for name in operations}
        edits = list(edits)
        dropped = tuple(f"{edit.path}." for edit in edits if isinstance(edit, DropBlock))
        self.dropped: Final = Selection(
            frozenset(n for n in anatomy.sizes if n.startswith(dropped))
        )
        """Tensors of dropped blocks, which can't train."""
        for edit in edits:
            self._added[edit.operation] += [
                tensor.name
                for tensor in edit.tensors
                if tensor.is_parameter and not tensor.is_frozen
            ]

    def select(self, patterns: Sequence[str], key: str) -> tuple[Selection, list[Diagnostic]]:
        """Return the union of the patterns, and diagnostics for those that match nothing.

        Args:
            patterns: Operation names, parts, globs, or OPERATION:glob.
            key: Key of the patterns in the recipe, for the diagnostics. Under `freeze`, an
                operation's `companions` are not included.
        """
        matches = [self._match(pattern) for pattern in patterns]
        if key != "freeze":
            matches += [
                self._companions(pattern) for pattern in patterns if pattern in self._operations
            ]
        empty = [
            i for i, pattern in enumerate(patterns) if not matches[i] and pattern not in self._added
        ]
        absent = [patterns[i] for i in empty if patterns[i] in _OPTIONAL_PARTS]
        found = [
            self._matches_nothing(patterns[i], f"{key}.{i}")
            for i in empty
            if patterns[i] not in _OPTIONAL_PARTS
        ]
        if absent:
            found.append(self._has_no(absent, key))
        return reduce(or_, matches, Selection()), found

    def _match(self, pattern: str) -> Selection:
        if pattern in self._added:
            return self._inside(pattern, "*")
        if pattern in PARTS:
            return Selection(base=frozenset(self._anatomy.names_in(pattern)))
        operation, colon, glob = pattern.partition(":")
        if colon:
            return self._inside(operation, glob)
        matches = (base for name, base in self._names.items() if fnmatchcase(name, pattern))
        return Selection(base=frozenset(matches))

    def _inside(self, operation: str, glob: str) -> Selection:
        names = self._added.get(operation, [])
        return Selection(added=frozenset((operation, n) for n in names if fnmatchcase(n, glob)))

    def _companions(self, operation: str) -> Selection:
        parts = self._operations[operation].companions
        return Selection(base=frozenset(n for part in parts for n in self._anatomy.names_in(part)))

    def _has_no(self, parts: list[str], key: str) -> Diagnostic:
        return diagnostic(
            "P212", source=self._anatomy.source, parts=" and no ".join(parts), key=key
        )

    def _matches_nothing(self, pattern: str, key: str) -> Diagnostic:
        known: Mapping[str, object] = dict.fromkeys((*self._added, *PARTS, *self._names))
        if near := suggest(pattern, known, limit=3):
            return diagnostic(
                "P201.similar", pattern=pattern, source=self._anatomy.source, near=near, key=key
            )
        return diagnostic(
            "P201.unlike",
            pattern=pattern,
            source=self._anatomy.source,
            operations=list(self._added) or "there are none",
            parts=PARTS,
            path=self._anatomy.blocks_path,
            key=key,
        )
