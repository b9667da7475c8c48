"""Read the anatomy of a torch model from its structure: blocks, their matrices, tied tensors."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from surgery.model.anatomy import Anatomy, BlockKind, Tensor
from surgery.model.structure.block_finder import find_blocks, text_config
from surgery.model.structure.block_matrices import Renamed, matrices_of
from surgery.model.structure.family import Family, read_family
from surgery.model.structure.peft_renames import renamed_by_peft
from surgery.model.structure.unsupported_operations import refusals_of
from surgery.storage.safetensors.dtypes import HEADER_NAMES

if TYPE_CHECKING:
    from torch import nn

_TOWERS: Final = {
    "vision": re.compile(r"vision|visual|image_enc|\bvit\b|patch_embed"),
    "projector": re.compile(r"projector|connector|merger|aligner|multi_modal|modality_proj"),
}


def inspect_model(model: "nn.Module", source: str) -> Anatomy:
    """Return the anatomy of a transformers model, on any device, the meta device included.

    Args:
        model: Causal language model or image-text model of transformers.
        source: Name of the model.

    Raises:
        SurgeryError: M106, if no list of decoder blocks is found.
    """
    config: Any = model.config
    family = _family(model)
    path, blocks = find_blocks(model, source, family.blocks)
    called = [name for name, field in family.called.items() if not getattr(config, field, False)]
    renamed = renamed_by_peft(model)
    kinds, sequence = _distinct(
        _kind(block, called, partial(_in_block, renamed, f"{path}.{index}."))
        for index, block in enumerate(blocks)
    )
    tied = _tied(model)
    outside = tuple(
        t for t in tensors_of(model) if not t.name.startswith(f"{path}.") and t.name not in tied
    )
    anatomy = Anatomy(
        source=source,
        model_type=config.model_type,
        class_name=type(model).__name__,
        blocks_path=path,
        kinds=kinds,
        sequence=sequence,
        outside=outside,
        parts=_parts(model, path, [t.name for t in outside], tied),
        tied=tied,
        quantization=quantization_method(getattr(config, "quantization_config", None)),
    )
    refusals = {**refusals_of(anatomy, config), **family.refuse}
    return anatomy.model_copy(update={"refusals": refusals})


def _in_block(renamed: Callable[[str], str], prefix: str, name: str) -> str:
    return renamed(f"{prefix}{name}")


def _family(model: "nn.Module") -> Family:
    """The facts on the decoder's own type, and on the composite type that contains it."""
    config: Any = model.config
    types = dict.fromkeys((text_config(model).model_type, config.model_type))
    known = (read_family(model_type).model_dump(exclude_defaults=True) for model_type in types)
    return Family.model_validate({key: value for fields in known for key, value in fields.items()})


def quantization_method(config: object) -> str:
    """The name of the method in a `quantization_config`, which is a dict, an object or None."""
    if config is None:
        return ""
    method = config.get("quant_method") if isinstance(config, dict) else config.quant_method  # type: ignore[attr-defined]
    return str(getattr(method, "value", method) or "unknown method")


def tensors_of(module: "nn.Module") -> Iterator[Tensor]:
    """The tensors of `state_dict`, without calling it, since bitsandbytes repacks weights in it."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        buffers = owner._buffers.items()
        persistent = {k: v for k, v in buffers if k not in owner._non_persistent_buffers_set}
        for name, value in {**owner._parameters, **persistent}.items():
            if value is not None:
                yield Tensor(
                    name=f"{prefix}.{name}" if prefix else name,
                    shape=tuple(value.shape),
                    dtype=_dtype_name(value.dtype),
                    is_parameter=name in owner._parameters,
                )


def _dtype_name(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    return HEADER_NAMES.get(name, name.upper())


def _kind(block: "nn.Module", called: Collection[str], renamed: Renamed) -> BlockKind:
    return BlockKind(
        class_name=type(block).__name__,
        tensors=tuple(tensors_of(block)),
        matrices=tuple(matrices_of(block, called, renamed)),
    )


def _tied(model: "nn.Module") -> dict[str, str]:
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        counted = first.setdefault(id(parameter), name)
        if counted != name:
            tied[name] = counted
    return tied


def _distinct(kinds: Iterable[BlockKind]) -> tuple[tuple[BlockKind, ...], tuple[int, ...]]:
    order: dict[BlockKind, int] = {}
    sequence = tuple(order.setdefault(kind, len(order)) for kind in kinds)
    return tuple(order), sequence


def _parts(
    model: "nn.Module", blocks_path: str, outside: list[str], tied: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    aliases = [*outside, *tied]
    embeddings = _under(model, model.get_input_embeddings(), outside)  # type: ignore[operator]
    head = _under(model, model.get_output_embeddings(), aliases)  # type: ignore[operator]
    head = [tied.get(name, name) for name in head]
    towers = {part: [n for n in outside if names.search(n)] for part, names in _TOWERS.items()}
    towers["projector"] = [n for n in towers["projector"] if n not in towers["vision"]]
    taken = {*embeddings, *head, *towers["vision"], *towers["projector"]}
    root = blocks_path.rpartition(".")[0]
    norm = [n for n in outside if n not in taken and n.startswith(root) and re.search("norm|ln", n)]
    found = {"embeddings": embeddings, "norm": norm, "head": head, **towers}
    return {part: tuple(names) for part, names in found.items() if names}


def _under(model: "nn.Module", wanted: "nn.Module | None", names: list[str]) -> list[str]:
    paths = [path for path, module in model.named_modules() if module is wanted]
    return [name for name in names if paths and name.startswith(f"{paths[0]}.")]
