"""The distinct kinds of block that a plan makes run, so that each is traced once and not 36 times.

Blocks are the same where their modules are of the same classes, shapes and settings, and the plan
adds the same to them. A copied block has its original's graph, so both are one form.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from surgery.operations.edits import AddExpert, AddLearner, AddLora, Edit
from surgery.plan.planner import Plan

if TYPE_CHECKING:
    from torch import nn

    Signature = tuple[object, ...]

_NAMES: Final = {AddLora: "lora", AddExpert: "expert", AddLearner: "learner"}
_BOTH: Final = ("text", "multimodal")


@dataclass(frozen=True)
class Shape:
    """The static shape of one step.

    Args:
        phase: `prefill`, many tokens at once, or `decode`, one.
        tokens: of this step.
        window: tokens before it whose keys and values come from the cache; may be 0 in prefill.
    """

    phase: Literal["prefill", "decode"]
    tokens: int
    window: int


@dataclass(frozen=True)
class BlockForm:
    """One distinct kind of block.

    Args:
        name: such as `block`, `block+lora`, `block+expert`, `vision.block`, `projector`; a further
            kind of the base's own names the first block that is of it: `block@5`.
        blocks: positions in the base of those that are of this form on some path, ascending; empty
            outside of the decoder.
        paths: `text`, `multimodal` or both: where a block of this form runs.
        module_path: full module name of the first of them.
        operation: of the recipe, which made it; empty for the base's own.
        added: the edits of the first of them, in the plan's order.
    """

    name: str
    blocks: tuple[int, ...]
    paths: tuple[str, ...]
    module_path: str
    operation: str = ""
    added: tuple[Edit, ...] = ()

    @property
    def phases(self) -> tuple[str, ...]:
        """When it runs: experts only while a prompt is read, since what is decoded is text."""
        has_experts = any(isinstance(edit, AddExpert) for edit in self.added)
        return ("prefill",) if has_experts else ("prefill", "decode")

    @property
    def key(self) -> str:
        """The key of the recipe that a finding on this form is about."""
        return f"operations.{self.operation}" if self.operation else "model"


def block_forms(plan: Plan, blocks: "nn.ModuleList") -> list[BlockForm]:
    """Return the forms of a plan's decoder blocks, in the order of their first blocks.

    A block with LoRA next to it is one form for both paths, because zeros for A and B make it
    the base's. One with experts or learners runs as the base's own along the text path.

    Args:
        plan: what to do.
        blocks: the base's, on any device.
    """
    known: dict[Signature, int] = {}
    groups: dict[tuple[Signature, Signature], list[tuple[int, str]]] = {}
    edits = _added(plan)
    for index in sorted({slot.source for slot in plan.depth}):
        kind = signature(blocks[index])
        known.setdefault(kind, index)
        for path, added in _runs(edits.get(index, ())):
            added_signature = tuple(
                _edit_signature(plan.anatomy.block_path(index), edit) for edit in added
            )
            groups.setdefault((kind, added_signature), []).append((index, path))
    forms = (
        _form(plan, known[kind], added_signature, users, edits)
        for (kind, added_signature), users in groups.items()
    )
    return list(_named_apart(sorted(forms, key=lambda form: (form.blocks[0], len(form.added)))))


def signature(block: "nn.Module") -> "Signature":
    """What tells kinds of block apart: classes, shapes, and settings that are words or yes and no.

    Numbers are left out, because a block's position is one. Of other settings only whether there is
    one counts, as of the width of a sliding window.
    """
    return tuple(
        (
            name,
            type(module).__name__,
            tuple((n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False)),
            tuple(_settings(module)),
        )
        for name, module in block.named_modules()
    )


def _named_apart(forms: Iterable[BlockForm]) -> Iterator[BlockForm]:
    """Two of one name, as where ranks differ, get the second's first block into its name."""
    used_names: set[str] = set()
    for form in forms:
        name = f"{form.name}@{form.blocks[0]}" if form.name in used_names else form.name
        used_names.add(name)
        yield replace(form, name=name)


def _settings(module: Any) -> Iterator[tuple[str, object]]:
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and (value is None or isinstance(value, bool | str | int)):
            yield name, value if isinstance(value, bool | str | None) else "a number"


def _added(plan: Plan) -> dict[int, list[Edit]]:
    """What stands alongside the matrices of each block; copied blocks have nothing there."""
    found: dict[int, list[Edit]] = {}
    for edit in plan.edits:
        if isinstance(edit, tuple(_NAMES)):
            found.setdefault(edit.block, []).append(edit)
    return found


def _runs(added: "list[Edit] | tuple[()]") -> "Iterator[tuple[str, list[Edit]]]":
    """What of that runs along which path; LoRA along both, with zeros for text."""
    loras: list[Edit] = [edit for edit in added if isinstance(edit, AddLora)]
    yield "text", loras
    yield "multimodal", list(added)


def _edit_signature(module_path: str, edit: Edit) -> "Signature":
    """What makes two edits of two blocks the same."""
    shapes = tuple((t.name.removeprefix(module_path), t.shape) for t in edit.tensors)
    rule = edit.rule if isinstance(edit, AddExpert | AddLearner) else None
    return edit.op, edit.operation, edit.path.removeprefix(module_path), shapes, rule


def _form(
    plan: Plan,
    kind: int,
    added_signature: "Signature",
    users: list[tuple[int, str]],
    edits: dict[int, list[Edit]],
) -> BlockForm:
    first = users[0][0]
    added = dict(_runs(edits.get(first, ())))[users[0][1]] if added_signature else []
    suffixes = dict.fromkeys(_NAMES[type(edit)] for edit in added)
    start = min(plan.depth, key=lambda slot: slot.source).source
    name = "+".join(["block" if kind == start else f"block@{kind}", *suffixes])
    return BlockForm(
        name=name,
        blocks=tuple(sorted({index for index, _ in users})),
        paths=tuple(path for path in _BOTH if any(path == used for _, used in users)),
        module_path=plan.anatomy.block_path(first),
        operation=added[0].operation if added else "",
        added=tuple(added),
    )
