"""Which matrices a word of `modules` means, and which of them nothing can be put beside."""

from collections.abc import Sequence

from surgery.anatomy import PARTS_OF_A_BLOCK, ROLES, Anatomy, BlockKind, Matrix
from surgery.diagnostic import Diagnostic, SurgeryError


def refuse_unknown(words: Sequence[str], anatomy: Anatomy, blocks: Sequence[int]) -> None:
    """Refuse words that mean no matrix of the picked blocks, or only such that can't be wrapped.

    A part (attention, mlp, mixer) whose matrices are all left out is no error where another word
    means one that isn't: the plan says what is left out.

    Raises:
        SurgeryError: P203.
    """
    kinds = _kinds(anatomy, blocks)
    held = {word for kind in kinds for word in kind.words()}
    missing = [word for word in words if kinds and word not in held]
    if missing:
        raise SurgeryError(_no_such_modules(missing, held, anatomy))
    useful = {word for kind in kinds for word in kind.words_for_lora()}
    useless = [word for word in words if kinds and word not in useful]
    roles = [word for word in useless if word not in PARTS_OF_A_BLOCK]
    if roles or (useless and len(useless) == len(words)):
        wanted = tuple(roles or useless)
        first = next(m for kind in kinds for m in kind.matrices if m.is_meant(wanted))
        raise SurgeryError(_only_apart(wanted, first, useful, anatomy))


def left_out(words: tuple[str, ...], anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
    """One note on the matrices that the words mean and that nothing is put beside."""
    matrices = [m for kind in _kinds(anatomy, blocks) for m in kind.matrices]
    apart = list(dict.fromkeys(m for m in matrices if m.apart and m.is_meant(words)))
    return [_left_out(apart, anatomy)] if apart else []


def _kinds(anatomy: Anatomy, blocks: Sequence[int]) -> list[BlockKind]:
    return list(dict.fromkeys(anatomy.block(block) for block in blocks))


def _in_order(words: set[str]) -> str:
    order = [*PARTS_OF_A_BLOCK, *ROLES]
    known = sorted(words, key=lambda w: (order.index(w) if w in order else len(order), w))
    return ", ".join(known)


def _no_such_modules(missing: list[str], held: set[str], anatomy: Anatomy) -> Diagnostic:
    return Diagnostic(
        code="P203",
        what=f"the picked blocks of {anatomy.source} have no {' and no '.join(missing)}",
        why=f"a {anatomy.model_type} block here has: {_in_order(held) or 'no matrices'}",
        fix="name some of those in `modules`",
        key="modules",
    )


def _only_apart(
    words: Sequence[str], matrix: Matrix, useful: set[str], anatomy: Anatomy
) -> Diagnostic:
    return Diagnostic(
        code="P203",
        what=f"nothing can be put beside {' and '.join(words)} of {anatomy.source}",
        why=f"`{matrix.name}` {matrix.apart}",
        fix=f"name others in `modules`: {_in_order(useful)}"
        if useful
        else "copy whole blocks with `duplicate`",
        key="modules",
    )


def _left_out(matrices: Sequence[Matrix], anatomy: Anatomy) -> Diagnostic:
    names = ", ".join(f"`{matrix.name}`" for matrix in matrices[:3])
    more = f" and {len(matrices) - 3} more" if len(matrices) > 3 else ""
    reasons = dict.fromkeys(f"`{m.name}` {m.apart}" for m in matrices)
    return Diagnostic(
        code="P230",
        what=f"{names}{more} of {anatomy.source} get nothing beside them",
        why=next(iter(reasons)),
        severity="note",
        key="modules",
    )
