"""Visual experts: image tokens use copies of a block's matrices, text tokens the base's."""

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy, BlockKind, Matrix
from surgery.operations._module_names import left_out
from surgery.operations._quantization import refuse_quantized
from surgery.operations.base import Operation
from surgery.operations.edits import AddedTensor, AddExpert, Edit, RoutingRule

_CROSS: Final = re.compile(r"encoder_attn|encdecattention|cross_?att", re.IGNORECASE)
_LATENT: Final = ".kv_b_proj"  # of multi-head latent attention, which caches what comes before it
_Run = Annotated[tuple[int, int], Field(strict=False)]


class Expert(Operation):
    """Give image tokens their own copies of the picked blocks' matrices (CogVLM, arXiv 2311.03079).

    One causal attention runs over all tokens; norms, embeddings and head are shared. Positions
    without an image, decoded ones included, use the base's own matrices.
    """

    op: Literal["expert"] = "expert"
    """Copy matrices for the image tokens."""

    modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("attention", "mlp")
    """Which matrices are copied: attention, mlp, or roles such as q, k, v, o, gate, up, down."""

    form: Literal["auto", "gather", "segments", "blend"] = "auto"
    """How tokens are routed. gather: rows are indexed (auto). segments: static slices, for a layout
    that is known beforehand. blend: both are computed and mixed, at twice the compute."""

    image_token_id: Annotated[int, Field(ge=0)] | None = None
    """Token id of an image token. Unless given, it is taken from the model's config, or from the
    caller's `image_mask` or `token_type_ids`."""

    boundary: Literal["plain", "cogvlm"] = "plain"
    """plain: every image token. cogvlm: only where the next token is an image token as well."""

    positions: Literal["plain", "cogvlm"] = "plain"
    """plain: each token its own position. cogvlm: the patches of an image share one, and its first
    and last token have their own."""

    runs: Annotated[tuple[_Run, ...], Field(strict=False)] = ()
    """For segments: [start, end] of each run of image tokens, the same in every prompt."""

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each block; see `Operation.plan`."""
        refuse_quantized(anatomy, "`expert` can't copy matrices", fix="")
        self._refuse_unknown_token(anatomy)
        self._refuse_unordered_runs()
        return [self._expert(name, anatomy, block) for block in blocks]

    def notes(self, anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
        """Note the matrices that are left out, and why; see `Operation.notes`."""
        return left_out(self.modules, anatomy, blocks, _skip_reason)

    def _expert(self, name: str, anatomy: Anatomy, block: int) -> AddExpert:
        path = anatomy.block_path(block)
        kind = anatomy.block(block)
        chosen = [
            m for m in kind.matrices if m.is_named(self.modules) and not _skip_reason(kind, m)
        ]
        if not chosen:
            raise SurgeryError(_no_matrices(anatomy, block, self.modules))
        tensors = tuple(t for matrix in chosen for t in _copies(anatomy, block, matrix))
        form = "gather" if self.form == "auto" else self.form
        rule = RoutingRule(form, self.image_token_id, self.boundary, self.positions, self.runs)
        matrices = tuple(f"{path}.{matrix.name}" for matrix in chosen)
        return AddExpert(name, "expert", block, path, tensors, matrices, rule)

    def _refuse_unknown_token(self, anatomy: Anatomy) -> None:
        shapes = {t.name: t.shape for t in anatomy.outside}
        vocabulary = [shapes[name][0] for name in anatomy.parts.get("embeddings", ())]
        token = self.image_token_id
        if token is not None and vocabulary and token >= max(vocabulary):
            raise SurgeryError(
                diagnostic("P214", token=token, vocabulary=max(vocabulary), key="image_token_id")
            )

    def _refuse_unordered_runs(self) -> None:
        ends = [edge for run in self.runs for edge in run]
        if ends != sorted(set(ends)) or any(edge < 0 for edge in ends):
            raise SurgeryError(
                diagnostic("P213", names=[list(run) for run in self.runs], key="runs")
            )


def _skip_reason(kind: BlockKind, matrix: Matrix) -> str:
    """Why a matrix can't be routed by image token; empty where it can."""
    routed = {m.name.partition(".")[0] for m in kind.matrices if m.experts}
    if not matrix.apart and matrix.name.partition(".")[0] in routed:
        return "stands beside routed experts, which take tokens out of their order"
    if not matrix.apart and _CROSS.search(matrix.name):
        return "looks at another sequence, whose tokens are not the prompt's"
    if not matrix.apart and matrix.name.endswith(_LATENT):
        return "expands keys and values of all tokens so far, not of this call's"
    return matrix.apart


def _copies(anatomy: Anatomy, block: int, matrix: Matrix) -> list[AddedTensor]:
    path = anatomy.block_path(block)
    tensors = {t.name: t for t in anatomy.block(block).tensors}
    found = (tensors.get(f"{matrix.name}.{end}") for end in ("weight", "bias"))
    return [
        AddedTensor(
            name=f"{path}.{matrix.name}.expert.{t.name.rpartition('.')[2]}",
            shape=t.shape,
            dtype=t.dtype,
            start="copy",
            source=anatomy.tied.get(f"{path}.{t.name}", f"{path}.{t.name}"),
        )
        for t in found
        if t
    ]


def _no_matrices(anatomy: Anatomy, block: int, names: tuple[str, ...]) -> Diagnostic:
    have = ", ".join(sorted(anatomy.block(block).module_names()))
    return diagnostic(
        "P203.kind",
        block=block,
        source=anatomy.source,
        missing=" and no ".join(names),
        known=have or "no matrices",
        key="modules",
    )
