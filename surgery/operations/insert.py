"""Add copies of blocks to the depth."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.structure.block_matrices import writes_residual
from surgery.operations._quantization import refuse_quantized
from surgery.operations.base import Operation
from surgery.operations.block_selector import Blocks
from surgery.operations.edits import AddedTensor, Edit, InsertBlock


def _one_model(ranges: object) -> object:
    for item in ranges if isinstance(ranges, list | tuple) else ():
        if isinstance(item, dict):
            named = item.get("model") or ", ".join(map(str, item))
            raise PydanticCustomError("ranges", "{fault}", {"fault": _two_models(str(named))})
    return ranges


def _two_models(named: str) -> str:
    return f"a range is [start, end] of the one model that `model` names, and this names `{named}`"


_PACKED: Final = (
    "the copies would need the packing of their originals in the new checkpoint's config"
)
_End = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^\d{1,9}/[1-9]\d{0,8}$")]
_Range = Annotated[tuple[_End, _End], Field(strict=False)]
Ranges = Annotated[tuple[_Range, ...], Field(strict=False), BeforeValidator(_one_model)]
"""The pydantic type of `ranges`: pairs of integers, or of fractions such as `3/4`."""


class Insert(Operation):
    """Make the decoder deeper with copies of its own blocks; the result is a plain checkpoint.

    With `blocks`, a copy follows each picked block, as in LLaMA-Pro (arXiv 2401.02415, section
    3.2). With `ranges`, the new depth is the concatenation of the given ranges, as in SOLAR (arXiv
    2312.15166, section 2) and in mergekit's passthrough.
    """

    op: Literal["insert"] = "insert"
    """Add copies of blocks to the depth."""

    blocks: Blocks = "none"
    """The blocks that are each followed by a copy; or give `ranges`."""

    ranges: Ranges = ()
    """[start, end] pairs, half-open as in mergekit; a fraction such as 3/4 is of the base's blocks.
    The first occurrence of a block is the base's own, later ones are copies."""

    times: Annotated[int, Field(ge=1)] = 1
    """Number of copies after each picked block."""

    start: Literal["copy", "identity"] = "copy"
    """copy: the original's weights. identity: all that writes to the residual stream is zero, so
    that the deeper model starts as the base."""

    @model_validator(mode="after")
    def _blocks_or_ranges(self) -> Self:
        both = self.blocks != "none" and self.ranges
        if both or not ({"blocks", "ranges"} & self.model_fields_set):
            fault = f"`insert` takes `blocks` or `ranges`, and {'both are' if both else 'none is'}"
            raise PydanticCustomError("ranges", "{fault} given", {"fault": fault})
        return self

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each copy; see `Operation.plan`."""
        refuse_quantized(
            anatomy, "`insert` can't copy blocks", why=_PACKED, fix=", and quantize the deeper one"
        )
        insertions = [(block, block) for block in blocks for _ in range(self.times)]
        if self.ranges:
            insertions = _copies(_sources(self.ranges, anatomy), anatomy)
        return [self._copy(name, anatomy, block, after) for block, after in insertions]

    def _copy(self, name: str, anatomy: Anatomy, block: int, after: int) -> InsertBlock:
        path, kind = anatomy.block_path(block), anatomy.block(block)
        silent = self.start == "identity"
        zeros = {t.name for t in kind.tensors if silent and writes_residual(t, kind)}
        tensors = tuple(
            AddedTensor(
                name=f"{path}.{t.name}",
                shape=t.shape,
                dtype=t.dtype,
                start="zeros" if t.name in zeros else "copy",
                is_parameter=t.is_parameter,
            )
            for t in kind.tensors
        )
        return InsertBlock(name, "insert", block, path, tensors, after, self.start)


def _sources(ranges: Ranges, anatomy: Anatomy) -> list[int]:
    """Indices of the base's blocks in the order of the new depth."""
    sources: list[int] = []
    for start, end in ranges:
        first, last = (_position(edge, anatomy.count) for edge in (start, end))
        if not first < last <= anatomy.count:
            raise SurgeryError(
                diagnostic(
                    "P220.empty",
                    start=start,
                    end=end,
                    source=anatomy.source,
                    last=anatomy.count - 1,
                    count=anatomy.count,
                    key="ranges",
                )
            )
        sources += range(first, last)
    return sources


def _position(edge: int | str, count: int) -> int:
    if isinstance(edge, int):
        return edge
    n, d = map(int, edge.split("/"))
    return count * n // d


def _copies(sources: list[int], anatomy: Anatomy) -> list[tuple[int, int]]:
    """(source, index of the base's block that it follows) of each repeated block."""
    own = list(dict.fromkeys(sources))
    if own != list(range(anatomy.count)):
        raise SurgeryError(_not_all_in_order(own, anatomy))
    seen, insertions = -1, []
    for source in sources:
        if source > seen:
            seen = source
        else:
            insertions.append((source, seen))
    return insertions


def _not_all_in_order(own: list[int], anatomy: Anatomy) -> Diagnostic:
    absent = sorted(set(range(anatomy.count)) - set(own))
    if absent:
        return diagnostic("P220.left_out", block=absent[0], source=anatomy.source, key="ranges")
    return diagnostic("P220.order", source=anatomy.source, key="ranges")
