"""Edits that are incompatible in one plan, and would otherwise fail silently."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.wording import counted
from surgery.model.anatomy import Anatomy
from surgery.operations.edits import (
    AddExpert,
    AddLearner,
    AddLora,
    DropBlock,
    Edit,
    InsertBlock,
    SwapBlock,
)


def conflicts(edits: Sequence[Edit], in_place: bool) -> list[Diagnostic]:
    """All conflicts among the edits of a plan.

    Args:
        edits: All edits of the plan.
        in_place: Whether base weights train in place.
    """
    if not edits and not in_place:
        return [diagnostic("P211", key="train")]
    copied = "two operations copy {count}, {first} first"
    adapted = "two operations put LoRA on {count}, {first} first"
    dropped = "two operations drop {count}, {first} first"
    learning = "two operations give learners to {count}, {first} first"
    found = [
        *_repeated(edits, SwapBlock, copied, "only one copy can replace a block"),
        *_repeated(edits, AddLora, adapted, "one adapter holds one pair for each matrix"),
        *_repeated(edits, AddLearner, learning, "a block has one visual and one textual learner"),
        *_repeated(edits, DropBlock, dropped, "a block can be left out once"),
    ]
    found += [*_differing_options(edits), *_differing_rules(edits), *_expert_conflicts(edits)]
    found += [*_lora_on_copies(edits), *_learners_on_copies(edits)]
    depth = [edit for edit in edits if isinstance(edit, InsertBlock | DropBlock)]
    additions = [edit for edit in edits if not isinstance(edit, InsertBlock | DropBlock)]
    if depth and additions:
        found.append(_depth_with_additions(depth[0], additions[0]))
    elif in_place and any(not isinstance(edit, AddLearner) for edit in additions):
        found.append(diagnostic("P207", key="train"))
    return found


def quantized_in_place(anatomy: Anatomy, trained: Iterable[frozenset[str]]) -> Iterator[Diagnostic]:
    """The error for training quantized weights of the base, if any train.

    Args:
        anatomy: Anatomy of the base.
        trained: For each stage, the names of the base tensors that train.
    """
    names = frozenset[str]().union(*trained) if anatomy.quantization else frozenset()
    packed = (
        f"{anatomy.block_path(index)}.{matrix.name}.weight"
        for index in range(anatomy.count)
        for matrix in anatomy.block(index).matrices
    )
    first = next((name for name in packed if name in names), None) if names else None
    if first:
        yield diagnostic(
            "P206.in_place",
            source=anatomy.source,
            quantization=anatomy.quantization,
            first=first,
            key="train",
        )


def _repeated(edits: Sequence[Edit], kind: type[Edit], what: str, why: str) -> Iterator[Diagnostic]:
    """The conflict of two operations with an edit of the same kind on the same module, if any."""
    chosen = [edit for edit in edits if isinstance(edit, kind)]
    counts = Counter(edit.path for edit in chosen)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        nouns = ("matrix", "matrices") if kind is AddLora else ("block",)
        second = [edit for edit in chosen if edit.path == twice[0]][1]
        yield diagnostic(
            "P205",
            format=what.format(count=counted(len(twice), *nouns), first=twice[0]),
            why=why,
            key=f"operations.{second.operation}.blocks",
        )


def _lora_on_copies(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    copied = {edit.block: edit for edit in edits if isinstance(edit, SwapBlock)}
    overlap = [e for e in edits if isinstance(e, AddLora) and e.block in copied]
    if overlap:
        blocks = sorted({edit.block for edit in overlap})
        first = overlap[0]
        yield diagnostic(
            "P204.lora",
            operation=first.operation,
            count=counted(len(blocks), "block"),
            other=copied[first.block].operation,
            blocks=blocks[0],
            key=f"operations.{first.operation}.blocks",
        )


def _differing_options(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    loras = [edit for edit in edits if isinstance(edit, AddLora)]
    other = next((edit for edit in loras if edit.options != loras[0].options), None)
    if other:
        yield diagnostic(
            "P209.peft",
            operation=loras[0].operation,
            other=other.operation,
            key=f"operations.{other.operation}.peft",
        )


def _differing_rules(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    experts = [edit for edit in edits if isinstance(edit, AddExpert)]
    learners = [edit for edit in edits if isinstance(edit, AddLearner)]
    for same_kind, fields in ((experts, "form"), (learners, "image_token_id")):
        other = next((edit for edit in same_kind if edit.rule != same_kind[0].rule), None)
        if other:
            yield diagnostic(
                "P209.routing",
                operation=same_kind[0].operation,
                other=other.operation,
                key=f"operations.{other.operation}.{fields}",
            )


def _expert_conflicts(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    experts = {
        path: edit for edit in edits if isinstance(edit, AddExpert) for path in edit.matrices
    }
    blocks = {edit.block: edit for edit in experts.values()}
    for edit in edits:
        if isinstance(edit, AddLora) and edit.path in experts:
            other: Edit = experts[edit.path]
        elif isinstance(edit, SwapBlock) and edit.block in blocks:
            other = blocks[edit.block]
        else:
            continue
        yield diagnostic(
            "P204.experts",
            operation=edit.operation,
            path=edit.path,
            other=other.operation,
            key=f"operations.{edit.operation}.blocks",
        )
        return


def _learners_on_copies(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    copied = {edit.block: edit for edit in edits if isinstance(edit, SwapBlock)}
    for edit in edits:
        if isinstance(edit, AddLearner) and edit.block in copied:
            other = copied[edit.block].operation
            yield diagnostic(
                "P204.learners",
                operation=edit.operation,
                block=edit.block,
                other=other,
                key=f"operations.{edit.operation}.blocks",
            )
            return


def _depth_with_additions(depth: Edit, other: Edit) -> Diagnostic:
    return diagnostic(
        "P217",
        operation=other.operation,
        depth_operation=depth.operation,
        key=f"operations.{depth.operation}.op",
    )
