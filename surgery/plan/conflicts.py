"""Edits that are incompatible in one plan, and would otherwise fail silently."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

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
        return [_does_nothing()]
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
        found.append(_in_place_with_additions())
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
        yield Diagnostic(
            code="P206",
            what=f"`train` names weights of {anatomy.source} that are quantized "
            f"({anatomy.quantization}), {first} first",
            why="packed integers have no gradients",
            fix="name the unquantized checkpoint in `model=`, or use `lora` on the quantized one",
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
        yield Diagnostic(
            code="P205",
            what=what.format(count=counted(len(twice), *nouns), first=twice[0]),
            why=why,
            fix="give the operations blocks or modules of their own",
            key=f"operations.{second.operation}.blocks",
        )


def _lora_on_copies(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    copied = {edit.block: edit for edit in edits if isinstance(edit, SwapBlock)}
    overlap = [e for e in edits if isinstance(e, AddLora) and e.block in copied]
    if overlap:
        blocks = sorted({edit.block for edit in overlap})
        first = overlap[0]
        yield Diagnostic(
            code="P204",
            what=f"`{first.operation}` puts LoRA on {counted(len(blocks), 'block')} that "
            f"`{copied[first.block].operation}` copies, block {blocks[0]} first",
            why="a copied block trains in full, and PEFT would drop its LoRA silently",
            fix=f"set `operations.{first.operation}.blocks: rest`",
            key=f"operations.{first.operation}.blocks",
        )


def _differing_options(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    loras = [edit for edit in edits if isinstance(edit, AddLora)]
    other = next((edit for edit in loras if edit.options != loras[0].options), None)
    if other:
        yield Diagnostic(
            code="P209",
            what=f"`{loras[0].operation}` and `{other.operation}` have different `peft` options",
            why="one adapter has one set of them; only rank and alpha may differ by matrix",
            fix="give both the same `peft:`",
            key=f"operations.{other.operation}.peft",
        )


def _differing_rules(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    experts = [edit for edit in edits if isinstance(edit, AddExpert)]
    learners = [edit for edit in edits if isinstance(edit, AddLearner)]
    for same_kind, fields in ((experts, "form"), (learners, "image_token_id")):
        other = next((edit for edit in same_kind if edit.rule != same_kind[0].rule), None)
        if other:
            yield Diagnostic(
                code="P209",
                what=f"`{same_kind[0].operation}` and `{other.operation}` find or route "
                "image tokens differently",
                why="the image tokens of a call are found once, for all such parts of the model",
                fix="give both the same form, image_token_id, boundary, positions and runs",
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
        yield Diagnostic(
            code="P204",
            what=f"`{edit.operation}` changes {edit.path}, where `{other.operation}` puts experts",
            why="a block has experts, or a copy, or LoRA on its matrices, and not two of them",
            fix=f"set `operations.{edit.operation}.blocks: rest`",
            key=f"operations.{edit.operation}.blocks",
        )
        return


def _learners_on_copies(edits: Sequence[Edit]) -> Iterator[Diagnostic]:
    copied = {edit.block: edit for edit in edits if isinstance(edit, SwapBlock)}
    for edit in edits:
        if isinstance(edit, AddLearner) and edit.block in copied:
            other = copied[edit.block].operation
            yield Diagnostic(
                code="P204",
                what=f"`{edit.operation}` puts learners in block {edit.block}, which `{other}` "
                "copies",
                why="they would be on the original's attention, which doesn't run on the "
                "multimodal path",
                fix=f"set `operations.{edit.operation}.blocks: rest`",
                key=f"operations.{edit.operation}.blocks",
            )
            return


def _in_place_with_additions() -> Diagnostic:
    return Diagnostic(
        code="P207",
        what="`train` names weights of the base along with operations that add parts",
        why="a base weight that trains in place takes the untouched text path away",
        fix="train the operations alone, `duplicate` the blocks that should train, "
        "or take the operations out",
        key="train",
    )


def _depth_with_additions(depth: Edit, other: Edit) -> Diagnostic:
    return Diagnostic(
        code="P217",
        what=f"`{other.operation}` adds to a model whose depth `{depth.operation}` changes",
        why="a new depth is written as a plain checkpoint, and an adapter goes on a checkpoint "
        "that exists",
        fix="take two steps: apply the new depth alone, then the rest with `model=` that folder",
        key=f"operations.{depth.operation}.op",
    )


def _does_nothing() -> Diagnostic:
    return Diagnostic(
        code="P211",
        what="this recipe changes nothing",
        why="it has no edit, and it trains no weight of the base",
        fix="add an operation, or name what trains in `train`",
        key="train",
    )
