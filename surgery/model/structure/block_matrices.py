"""The matrices of a block: the role and part of each, and whether LoRA can wrap it.

A module's class counts for more than its name: a module named `mixer` is attention in some models,
which its class shows. Names decide where the class is a generic one. Source: the blocks of all
decoders of transformers 5.23 (docs/decisions/0008-any-decoder.md).
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from surgery.model.anatomy import BlockKind, Matrix, Tensor

if TYPE_CHECKING:
    from torch import nn

Renamed = Callable[[str], str]
_EXPERT_OUTPUT: Final = re.compile(r"experts\.(down_proj|w2)(_bias)?$|experts\.mlp\.w2$")
_CLASSES: Final = {
    "mixer": re.compile(r"(Mixer|DeltaNet|DeltaAttention|LinearAttention|Conv|RecurrentBlock)$"),
    "mlp": re.compile(r"(MLP|Mlp|FFN|FeedForward|MoE|Moe|MoeBlock|Experts|Router|TopK\w*)$"),
    "attention": re.compile(r"(Attention|MLA)$"),
}
_NAMES: Final = {
    "mixer": re.compile(r"mixer|mamba|ssm|conv|recurrent|rwkv|linear_attn|lstm"),
    "mlp": re.compile(
        r"mlp|ffn|feed_forward|feedforward|expert|^fc\d|^dense_|^intermediate$|^output$|^router$"
    ),
    "attention": re.compile(r"attn|attention"),
}
_ROLES: Final = {
    "q": re.compile(r"q_proj|query|wq|q"),
    "k": re.compile(r"k_proj|key|wk|k"),
    "v": re.compile(r"v_proj|value|wv|v"),
    "o": re.compile(r"o_proj|out_proj|wo|o"),
    "gate": re.compile(r"gate_proj|w1"),
    "up": re.compile(r"up_proj|w3|fc1|fc_in|c_fc|dense_h_to_4h"),
    "down": re.compile(r"down_proj|w2|fc2|fc_out|dense_4h_to_h|output_linear"),
    "qkv": re.compile(r"qkv_proj|query_key_value|c_attn|wqkv"),
    "gate_up": re.compile(r"gate_up_proj|gate_and_up_proj|input_linear"),
    "router": re.compile(r"router|gate|shared_expert_gate"),
}
_ROLES_BY_LAST_NAME: Final = {
    "attention": {"c_proj": "o", "dense": "o"},
    "mlp": {"c_proj": "down", "output.dense": "down", "intermediate.dense": "up"},
}
_RESIDUAL_MIXERS: Final = re.compile(r"HyperConnection|HyperHead|ResidualGate|GatedResidual")
"""Classes that mix residual streams: no part of attention or MLP, whatever their names."""
_ROUTER: Final = re.compile(r"Router|TopK|Gating(?!MLP)")
_READS_WEIGHT: Final = re.compile(
    r"self\.(\w+)\.(?:weight|bias)\b(?!\.(?:dtype|device|shape|ndim|is_)| is (?:not )?None)"
)
_LIBRARIES: Final = ("torch.", "bitsandbytes.", "transformers.integrations.", "peft.")
_BUILDERS: Final = ("__init__", "_init_weights", "reset_parameters")


def matrices_of(
    block: "nn.Module", called: Collection[str] = (), renamed: Renamed = lambda name: ""
) -> Iterator[Matrix]:
    """Yield the matrices of a block in the order of its modules.

    Those are linear modules (also GPT-2's Conv1D), routers of other classes, and parameters of
    three dimensions with one matrix for each expert.

    Args:
        block: Block on any device, the meta device included.
        called: Last names of matrices that are called as modules, though code in a branch that
            isn't taken reads their weights.
        renamed: From a module's name relative to the block to why PEFT takes it for another;
            an empty reason by default.
    """
    modules = dict(block.named_modules())
    for name, module in modules.items():
        part = _part(name, modules)
        shape = _shape_of_linear(module)
        if shape:
            yield Matrix(
                name=name,
                role="router" if _in_router(name, modules) else _role(name, part),
                part=part,
                inputs=shape[1],
                outputs=shape[0],
                bias=module.bias is not None,
                is_transposed=not hasattr(module, "in_features"),
                apart=_skip_reason(name, modules, called, renamed),
            )
        else:
            yield from _bare_router(name, module)
            yield from _packed_experts(name, module, part)


def _shape_of_linear(module: Any) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return (module.weight.shape[1], module.weight.shape[0]) if isinstance(module, Conv1D) else None


def _part(name: str, modules: "dict[str, nn.Module]") -> str:
    path = ""
    for step in name.split("."):
        path = f"{path}.{step}" if path else step
        of_class = type(modules[path]).__name__ if path != name else ""
        if _RESIDUAL_MIXERS.search(of_class):
            return ""
        found = _first(_CLASSES, of_class) or _first(_NAMES, step.lower())
        if found:
            return found
    return ""


def _first(patterns: dict[str, re.Pattern[str]], text: str) -> str:
    return next((key for key, pattern in patterns.items() if pattern.search(text)), "")


def _role(name: str, part: str) -> str:
    own = _ROLES_BY_LAST_NAME.get(part, {})
    parts = name.rsplit(".", 2)
    last = parts[-1]
    known = own.get(".".join(parts[-2:])) or own.get(last)
    if known:
        return known
    roles = (role for role, names in _ROLES.items() if names.fullmatch(last.lower()))
    role = next(roles, last)
    return last if role == "router" and part not in ("mlp", "") else role


def _in_router(name: str, modules: "dict[str, nn.Module]") -> bool:
    """Whether a module is a router, or inside one."""
    parts = name.split(".")
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    if any(_ROUTER.search(type(modules[path]).__name__) for path in paths):
        return True
    return "gate" in parts[:-1] and _part(name, modules) == "mlp"


def _bare_router(name: str, module: Any) -> Iterator[Matrix]:
    weight = module._parameters.get("weight")
    kind = type(module).__name__
    if weight is not None and weight.ndim == 2 and _ROUTER.search(kind):
        outputs, inputs = weight.shape
        yield Matrix(
            name=name,
            role="router",
            part="mlp",
            inputs=inputs,
            outputs=outputs,
            bias=module._parameters.get("bias") is not None,
            apart=f"is a parameter of {kind}, which is no linear module",
        )


def _packed_experts(name: str, module: Any, part: str) -> Iterator[Matrix]:
    kind = type(module).__name__
    if "expert" not in f"{name}.{kind}".lower():
        return
    for own, parameter in module._parameters.items():
        if parameter is None or parameter.ndim != 3:
            continue
        full = name if own == "weight" else f"{name}.{own}"
        transposed = bool(getattr(module, "is_transposed", False))
        experts, outputs, inputs = parameter.shape
        yield Matrix(
            name=full,
            role=_role(full, part),
            part=part or "mlp",
            inputs=outputs if transposed else inputs,
            outputs=inputs if transposed else outputs,
            bias=f"{own}_bias" in module._parameters,
            is_transposed=transposed,
            experts=experts,
            apart="holds the matrices of all experts in one parameter",
        )


def _skip_reason(
    name: str,
    modules: "dict[str, nn.Module]",
    called: Collection[str],
    renamed: Renamed,
) -> str:
    """Why PEFT's wrapper would be bypassed, or would compute something else; empty where not."""
    module, (parent, _, own) = modules[name], name.rpartition(".")
    owner: Any = type(modules[parent])
    if own in _read_directly(owner) and own not in called:
        return f"is multiplied by {owner.__name__} itself, at least where its kernels are installed"
    if _computes_otherwise(module):
        return f"is a {type(module).__name__}, which computes more than a linear map"
    return renamed(name)


@cache
def _read_directly(owner: type) -> frozenset[str]:
    """Names of children whose weight the code of a class reads directly."""
    sources = []
    for name, function in vars(owner).items():
        if inspect.isfunction(function) and name not in _BUILDERS:
            try:
                sources.append(inspect.getsource(function))
            except OSError:  # defined without a file, as in a notebook
                continue
    return frozenset(name for source in sources for name in _READS_WEIGHT.findall(source))


def _computes_otherwise(module: Any) -> bool:
    """Whether a model's own subclass of Linear doesn't map (1, inputs) to (1, outputs)."""
    import torch
    from torch import nn

    kind = type(module)
    if not isinstance(module, nn.Linear) or kind.forward is nn.Linear.forward:
        return False
    if kind.__module__.startswith(_LIBRARIES):
        return False
    try:
        with torch.no_grad():
            out = module(module.weight.new_empty(1, module.in_features))
    except (RuntimeError, TypeError, ValueError):
        return True
    return not isinstance(out, torch.Tensor) or out.shape != (1, module.out_features)


def writes_residual(tensor: Tensor, kind: BlockKind) -> bool:
    """Whether a tensor of a block is in a matrix whose output is added to the residual stream.

    Those are the weights and biases of the last matrix of attention, MLP, mixer and experts.

    Args:
        tensor: Tensor of the block, named relative to it.
        kind: Kind of the block.
    """
    module = tensor.name.rpartition(".")[0]
    last = {matrix.name for matrix in kind.matrices if matrix.role in ("o", "down")}
    return module in last or bool(_EXPERT_OUTPUT.search(tensor.name))
