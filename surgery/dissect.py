"""Find the anatomy of a torch model by its structure: the block list, the roles, what is tied.

Source: the survey of all decoders of transformers 5.23 (docs/decisions/0004-structure-first.md):
the longest list that is not nested in another and not part of a tower.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from surgery.anatomy import Anatomy, BlockKind, Matrix, Tensor
from surgery.diagnostic import Diagnostic, SurgeryError

if TYPE_CHECKING:
    from torch import nn

_TOWERS: Final = {
    "vision": re.compile(r"vision|visual|image_enc|\bvit\b|patch_embed"),
    "projector": re.compile(r"projector|connector|merger|aligner|multi_modal|modality_proj"),
}
_NOT_BLOCKS: Final = re.compile(r"vision|visual|image_enc|audio|mtp|altup|patcher|local_")
_PART_NAMES: Final = {
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|ffn|feed_forward|feedforward|expert|^fc\d|^dense_"),
    "mixer": re.compile(r"mixer|mamba|ssm|conv|recurrent|rwkv|linear_attn|temporal"),
}
_ROLE_NAMES: Final = {
    "q": re.compile(r"q_proj|query|wq|q"),
    "k": re.compile(r"k_proj|key|wk|k"),
    "v": re.compile(r"v_proj|value|wv|v"),
    "o": re.compile(r"o_proj|out_proj|wo|o"),
    "gate": re.compile(r"gate_proj|w1"),
    "up": re.compile(r"up_proj|w3|fc1|fc_in|c_fc|dense_h_to_4h"),
    "down": re.compile(r"down_proj|w2|fc2|fc_out|dense_4h_to_h"),
    "qkv": re.compile(r"qkv_proj|query_key_value|c_attn|wqkv"),
    "gate_up": re.compile(r"gate_up_proj|gate_and_up_proj"),
    "router": re.compile(r"router|gate|shared_expert_gate"),
}
_DTYPES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def dissect(model: "nn.Module", source: str) -> Anatomy:
    """Return the anatomy of a transformers model, on any device, the meta device included.

    Args:
        model: a causal language model or an image-text model of transformers.
        source: what to call it.

    Raises:
        SurgeryError: M106, if no list of decoder blocks is found.
    """
    path, blocks = find_blocks(model, source)
    kinds, sequence = _distinct(_kind(block) for block in blocks)
    tied = _tied(model)
    outside = tuple(
        t for t in _tensors(model) if not t.name.startswith(f"{path}.") and t.name not in tied
    )
    config: Any = model.config
    quantization = getattr(config, "quantization_config", None)
    return Anatomy(
        source=source,
        model_type=config.model_type,
        class_name=type(model).__name__,
        blocks_path=path,
        kinds=kinds,
        sequence=sequence,
        outside=outside,
        parts=_parts(model, path, [t.name for t in outside], tied),
        tied=tied,
        quantization=quantization_method(quantization),
    )


def quantization_method(config: object) -> str:
    """The name of the method in a `quantization_config`, which is a dict, an object or None."""
    if config is None:
        return ""
    method = config.get("quant_method") if isinstance(config, dict) else config.quant_method  # type: ignore[attr-defined]
    return str(getattr(method, "value", method) or "unknown method")


def find_blocks(model: "nn.Module", source: str) -> tuple[str, "nn.ModuleList"]:
    """Return the module name and the list of the decoder's blocks.

    Raises:
        SurgeryError: M106, if there is none.
    """
    lists = list(_block_lists(model))
    depth = getattr(_text_config(model), "num_hidden_layers", None)
    of_depth = [entry for entry in lists if len(entry[1]) == depth] or lists
    if not of_depth:
        raise SurgeryError(_no_blocks(model, source))
    return max(of_depth, key=lambda entry: _rank_as_blocks(entry[1]))


def _block_lists(model: "nn.Module") -> Iterator[tuple[str, "nn.ModuleList"]]:
    from torch import nn

    nested: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if not any(name.startswith(f"{outer}.") for outer in nested):
            nested.add(name)
            if not _NOT_BLOCKS.search(name):
                yield name, module


def _rank_as_blocks(blocks: "nn.ModuleList") -> tuple[bool, int]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    parameters = sum(parameter.numel() for parameter in blocks.parameters())
    return isinstance(blocks[0], GradientCheckpointingLayer), parameters


def _text_config(model: "nn.Module") -> Any:
    config: Any = model.config
    return config.get_text_config(decoder=True)


def _tensors(module: "nn.Module") -> Iterator[Tensor]:
    """What `state_dict` holds, without calling it: bitsandbytes repacks its weights in there."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        buffers = owner._buffers.items()
        kept = {k: v for k, v in buffers if k not in owner._non_persistent_buffers_set}
        for name, value in {**owner._parameters, **kept}.items():
            if value is not None:
                yield Tensor(
                    name=f"{prefix}.{name}" if prefix else name,
                    shape=tuple(value.shape),
                    dtype=_dtype_name(value.dtype),
                    is_parameter=name in owner._parameters,
                )


def _dtype_name(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name.upper())


def _kind(block: "nn.Module") -> BlockKind:
    return BlockKind(
        class_name=type(block).__name__,
        tensors=tuple(_tensors(block)),
        matrices=tuple(_matrices(block)),
    )


def _matrices(block: "nn.Module") -> Iterator[Matrix]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            outputs, inputs = module.out_features, module.in_features
        elif isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
        else:
            continue
        yield Matrix(
            name=name,
            role=_role(name),
            part=_part(name),
            inputs=inputs,
            outputs=outputs,
            bias=module.bias is not None,
            is_transposed=isinstance(module, Conv1D),
        )


def _role(name: str) -> str:
    last = name.rpartition(".")[2]
    if last == "c_proj":
        return "o" if _part(name) == "attention" else "down"
    roles = (role for role, names in _ROLE_NAMES.items() if names.fullmatch(last.lower()))
    return next(roles, last)


def _part(name: str) -> str:
    pieces = name.lower().split(".")
    for piece in pieces:
        for part, names in reversed(_PART_NAMES.items()):
            if names.search(piece):
                return part
    return ""


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


def _no_blocks(model: "nn.Module", source: str) -> Diagnostic:
    return Diagnostic(
        code="M106",
        what=f"{source}: no list of decoder blocks was found in {type(model).__name__}",
        why="a decoder keeps its blocks in one list, such as `model.layers`; none here fits",
        fix="name a decoder language model, or report the model type so that it is added",
    )
