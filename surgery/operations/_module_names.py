"""The matrices that the names in `modules` mean, and those of them that can't be wrapped."""

from collections.abc import Callable, Sequence

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError, some_of
from surgery.model.anatomy import PARTS_OF_A_BLOCK, ROLES, Anatomy, BlockKind, Matrix

Reason = Callable[[BlockKind, Matrix], str]


def skip_reason(kind: BlockKind, matrix: Matrix) -> str:
    """Why a matrix can't be wrapped at all; empty where it can."""
    return matrix.apart


def refuse_unknown(names: Sequence[str], anatomy: Anatomy, blocks: Sequence[int]) -> None:
    """Refuse names that mean no matrix of the picked blocks, or only ones that can't be wrapped.

    A part (attention, mlp, mixer) whose matrices are all left out is no error where another name
    means one that isn't: a note of the plan lists what is left out.

    Raises:
        SurgeryError: P203.
    """
    kinds = _kinds(anatomy, blocks)
    known = {name for kind in kinds for name in kind.module_names()}
    missing = [name for name in names if kinds and name not in known]
    if missing:
        raise SurgeryError(
            diagnostic(
                "P203.unknown",
                source=anatomy.source,
                missing=" and no ".join(missing),
                model_type=anatomy.model_type,
                known=_in_order(known) or "no matrices",
                key="modules",
            )
        )
    useful = {name for kind in kinds for name in kind.adaptable_names()}
    useless = [name for name in names if kinds and name not in useful]
    roles = [name for name in useless if name not in PARTS_OF_A_BLOCK]
    if roles or (useless and len(useless) == len(names)):
        wanted = tuple(roles or useless)
        first = next(m for kind in kinds for m in kind.matrices if m.is_named(wanted))
        raise SurgeryError(
            diagnostic(
                "P203.skipped",
                names=" and ".join(wanted),
                source=anatomy.source,
                name=first.name,
                apart=first.apart,
                fix=f"name others in `modules`: {_in_order(useful)}"
                if useful
                else "copy complete blocks with `duplicate`",
                key="modules",
            )
        )


def left_out(
    names: tuple[str, ...], anatomy: Anatomy, blocks: Sequence[int], why: Reason = skip_reason
) -> list[Diagnostic]:
    """One note on the matrices that the names mean and that are left out.

    Args:
        names: Value of `modules`.
        anatomy: Anatomy of the base.
        blocks: Indices of the picked blocks.
        why: From a kind and a matrix of it to the reason; empty for a matrix that isn't left out.
    """
    found = {
        matrix.name: reason
        for kind in _kinds(anatomy, blocks)
        for matrix in kind.matrices
        if matrix.is_named(names) and (reason := why(kind, matrix))
    }
    return [_left_out(found, anatomy)] if found else []


def _kinds(anatomy: Anatomy, blocks: Sequence[int]) -> list[BlockKind]:
    return list(dict.fromkeys(anatomy.block(block) for block in blocks))


def _in_order(names: set[str]) -> str:
    order = [*PARTS_OF_A_BLOCK, *ROLES]
    known = sorted(names, key=lambda w: (order.index(w) if w in order else len(order), w))
    return ", ".join(known)


def _left_out(reasons: dict[str, str], anatomy: Anatomy) -> Diagnostic:
    names = [f"`{name}`" for name in reasons]
    return diagnostic(
        "P221",
        names=some_of(names),
        source=anatomy.source,
        reasons="; ".join(
            (f"`{name}` {reason}" for reason, name in _first_of_each(reasons).items())
        ),
        key="modules",
    )


def _first_of_each(reasons: dict[str, str]) -> dict[str, str]:
    """From each reason to the first name with it."""
    return {reason: name for name, reason in reversed(reasons.items())}
