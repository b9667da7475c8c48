"""The anatomy of a model as a compact picture."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TypeVar

from rich.text import Text
from rich.tree import Tree

from surgery.cli.views.terminal import out
from surgery.diagnostics.positions import in_ranges
from surgery.model.anatomy import Anatomy, BlockKind, Matrix, Tensor

K = TypeVar("K")
V = TypeVar("V")
_SHADES = "█▓▒░"


def print_anatomy(anatomy: Anatomy) -> None:
    """Print the parts of a model from the embeddings to the head."""
    kind = f"{anatomy.model_type} ({anatomy.class_name}), {anatomy.parameters:,} parameters"
    tree = Tree(_line(anatomy.source, kind, "bold"), guide_style="dim")
    for part in ("vision", "projector", "embeddings"):
        _add_part(tree, anatomy, part)
    _add_blocks(tree, anatomy)
    for part in ("norm", "head"):
        if part != "head" or anatomy.parts.get("head") != anatomy.parts.get("embeddings"):
            _add_part(tree, anatomy, part)
    for line in _shared(anatomy):
        tree.add(line)
    if anatomy.quantization:
        tree.add(_line("quantized", anatomy.quantization, "yellow"))
    for reason, names in _by_value(anatomy.refusals).items():
        tree.add(_line("refused", f"{', '.join(names)}: {reason}", "yellow"))
    out().print(tree, soft_wrap=True)


def _line(name: str, what: str, style: str = "cyan") -> Text:
    return Text.assemble((name, style), f"  {what}")


def _shared(anatomy: Anatomy) -> Iterator[Text]:
    """What shares its parameters: tensors outside of the blocks one by one, blocks together."""
    inside = f"{anatomy.blocks_path}."
    for alias, counted in anatomy.tied.items():
        if not alias.startswith(inside):
            yield _line("head", f"{alias} = {counted} (tied, counted once)")
    for first, blocks in _by_value(anatomy.sharing()).items():
        names = in_ranges(blocks)
        yield _line("shared", f"{names} with {first} (parameters in common, counted once)")


def _by_value(pairs: Mapping[K, V]) -> dict[V, list[K]]:
    groups: dict[V, list[K]] = {}
    for key, value in pairs.items():
        groups.setdefault(value, []).append(key)
    return groups


def _add_part(tree: Tree, anatomy: Anatomy, part: str) -> None:
    names = set(anatomy.parts.get(part, ()))
    tensors = [t for t in anatomy.outside if t.name in names]
    if len(tensors) > 3:
        tree.add(_line(part, f"{len(tensors)} tensors  {sum(t.size for t in tensors):,}"))
        return
    for tensor in tensors:
        tree.add(_line(part, f"{tensor.name}  {_shape(tensor)}  {tensor.size:,}"))


def _add_blocks(tree: Tree, anatomy: Anatomy) -> None:
    bar = "".join(_SHADES[min(kind, 3)] for kind in anatomy.sequence)
    blocks = tree.add(_line("blocks", f"{anatomy.blocks_path}.0-{anatomy.count - 1}  {bar}"))
    for index, kind in enumerate(anatomy.kinds):
        positions = [i for i, k in enumerate(anatomy.sequence) if k == index]
        shade = _SHADES[min(index, 3)]
        branch = blocks.add(
            f"{shade} {in_ranges(positions)}  {kind.class_name}  {kind.parameters:,} each"
        )
        for line in _kind_lines(kind):
            branch.add(line)


def _kind_lines(kind: BlockKind) -> Iterator[Text]:
    for part, matrices in groupby(kind.matrices, key=lambda m: m.part or "other"):
        text = Text(f"{part}  ", style="green")
        text.append("  ".join(map(_matrix, matrices)), style="default")
        yield text
    named = {f"{m.name}.{end}" for m in kind.matrices for end in ("weight", "bias")}
    named |= {m.name for m in kind.matrices if m.experts}
    others = [t for t in kind.tensors if t.name not in named]
    for matrix in kind.matrices:
        if matrix.apart and not matrix.experts and matrix.role != "router":
            yield Text(f"* {matrix.name} {matrix.apart}: no LoRA", style="dim")
    if others:
        yield Text("other  ", style="green").append(_others(others), style="default")
    yield Text(f"stored as {', '.join(sorted({t.dtype for t in kind.tensors}))}", style="dim")


def _matrix(matrix: Matrix) -> str:
    packed = f"{matrix.experts} experts' " if matrix.experts else ""
    marks = ("+b" if matrix.bias else "") + ("ᵀ" if matrix.is_transposed else "")
    marks += "*" if matrix.apart and not matrix.experts else ""
    return f"{packed}{matrix.role} {matrix.outputs}x{matrix.inputs}{marks}"


def _others(tensors: Iterable[Tensor]) -> str:
    return "  ".join(f"{t.name.removesuffix('.weight')} {_shape(t)}" for t in tensors)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
