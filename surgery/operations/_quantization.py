"""Refuse operations that copy weights of a quantized base."""

from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy

TRAINED_IN_FULL: Final = "a copy is trained in full, and packed integers have no gradients"


def refuse_quantized(
    anatomy: Anatomy, action: str, *, why: str = TRAINED_IN_FULL, fix: str
) -> None:
    """Refuse a base whose weights are quantized.

    Args:
        anatomy: Anatomy of the base.
        action: What can't be done, such as "`duplicate` can't copy blocks".
        why: The reason; by default that a copy is trained in full.
        fix: An alternative to naming the unquantized checkpoint; may be empty.

    Raises:
        SurgeryError: P206.
    """
    if not anatomy.quantization:
        return
    raise SurgeryError(
        diagnostic(
            "P206.operation",
            action=action,
            source=anatomy.source,
            quantization=anatomy.quantization,
            why=why,
            fix=fix,
            key="op",
        )
    )
