"""A complete decoder as one graph of dynamic shapes, with keys and values in and out.

Its own code runs as it is, so no family's masks or rotary embeddings are written again. Imports
torch at the top: only what makes graphs reaches it.

Shapes: N prompts, T tokens of the step, P tokens before it, K heads of keys, C width of a head.
"""

from collections.abc import Iterable
from typing import Any, Final

import onnx_ir as ir
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from surgery.graphs.block.step import Feeds
from surgery.graphs.model_shell import ModelWithoutWeights
from surgery.model.loading import head_sizes
from surgery.model.structure.block_finder import text_config
from surgery.operations.edits import AddLora

_PROMPTS: Final = 2
_TOKENS: Final = 3
_PAST: Final = 5  # sizes that torch.export doesn't take for special, and that differ


def decoder_graph(whole: ModelWithoutWeights) -> ir.Model:
    """Return the graph of a step, without weights.

    Args:
        whole: the model.

    Returns:
        From `input_ids` (N, T), `attention_mask` (N, P+T), `position_ids` (N, T) and for each block
        `past_key_values.0.key` and `.value` (N, K, P, C) to `logits` (N, 1, V) of the last token
        and `present.0.key` and `.value` (N, K, P+T, C).

    Raises:
        SurgeryError: A612 where torch can't export it.
    """
    count = whole.plan.anatomy.count

    def compute(feeds: Feeds) -> Feeds:
        layers = [_GrowingLayer(*(feeds[name] for name in _past(i))) for i in range(count)]
        given = {name: feeds[name] for name in ("input_ids", "attention_mask", "position_ids")}
        found = whole.model(
            **given, past_key_values=Cache(layers=layers), use_cache=True, logits_to_keep=1
        )
        present = {
            name: tensor
            for index, layer in enumerate(layers)
            for name, tensor in zip(_present(index), (layer.keys, layer.values), strict=True)
        }
        return {"logits": found.logits, **present}

    feeds = _feeds(text_config(whole.model), count)
    grows = torch.export.Dim.DYNAMIC
    axes = {name: (0, 2) if tensor.dim() == 4 else (0, 1) for name, tensor in feeds.items()}
    dynamic = {name: dict.fromkeys(axes[name], grows) for name in feeds}
    model = whole.to_onnx(compute, feeds, dynamic)
    _store_once(model.graph, whole)
    return model


def add_overridable_loras(model: ir.Model, loras: Iterable[AddLora]) -> None:
    """Put low-rank pairs alongside their matrices, of rank 0 until they are overridden.

    Args:
        model: changed in place.
        loras: whose A (D, R) and B (R, E) become initializers that are inputs too.
    """
    for lora in loras:
        weight = model.graph.initializers[f"{lora.path}.weight"]
        product = next(iter(weight.uses())).node.outputs[0]
        assert product.dtype is not None
        a, b = lora.tensors[:2]
        down = _pair_side(model.graph, a.name, (a.shape[1], None), product.dtype)
        up = _pair_side(model.graph, b.name, (None, b.shape[0]), product.dtype)
        _add_pair(model.graph, product, down, up)


def make_overridable(model: ir.Model, names: Iterable[str]) -> None:
    """Make initializers inputs too.

    Args:
        model: changed in place.
        names: of the initializers.
    """
    for name in names:
        model.graph.inputs.append(model.graph.initializers[name])


def _add_pair(graph: ir.Graph, product: ir.Value, down: ir.Value, up: ir.Value) -> None:
    node = product.producer()
    assert node is not None
    assert product.dtype is not None
    users = tuple(product.uses())
    low = ir.node("MatMul", [node.inputs[0], down])
    share = ir.node("MatMul", [low.outputs[0], up])
    total = ir.node("Add", [product, share.outputs[0]])
    for each, stem in ((low, "low"), (share, "share"), (total, "sum")):
        each.outputs[0].name = f"{down.name}.{stem}"
        each.outputs[0].dtype = product.dtype
    total.outputs[0].shape = product.shape
    for user, index in users:
        user.replace_input_with(index, total.outputs[0])
    graph.insert_after(node, [low, share, total])


def _pair_side(graph: ir.Graph, name: str, shape: tuple[int | None, ...], dtype: Any) -> ir.Value:
    """An initializer of rank 0 whose input may be of any."""
    empty = torch.zeros([size or 0 for size in shape]).numpy()
    value = ir.Value(
        name=name,
        shape=ir.Shape([size or f"rank.{name}" for size in shape]),
        type=ir.TensorType(dtype),
        const_value=ir.Tensor(empty, name=name),
    )
    graph.register_initializer(value)
    graph.inputs.append(value)
    return value


def _store_once(graph: ir.Graph, whole: ModelWithoutWeights) -> None:
    """Let a head that is the embeddings transpose those, instead of being stored beside them."""
    names = {id(module): name for name, module in whole.model.named_modules()}
    words, head = (
        f"{names[id(module)]}.weight"
        for module in (whole.model.get_input_embeddings(), whole.model.get_output_embeddings())
    )
    if not {(words, head), (head, words)} & whole.plan.anatomy.tied.items():
        return
    value = graph.initializers.pop(head)
    assert value.dtype is not None
    transposed = ir.node("Transpose", [graph.initializers[words]], {"perm": [1, 0]})
    out = transposed.outputs[0]
    out.name, out.dtype, out.shape = f"{head}.transposed", value.dtype, value.shape
    ir.convenience.replace_all_uses_with(value, out)
    graph.insert_before(graph[0], transposed)


def _feeds(config: Any, blocks: int) -> Feeds:
    heads = head_sizes(config)
    keys = torch.zeros(_PROMPTS, heads.keys, _PAST, heads.width)
    positions = torch.arange(_PAST, _PAST + _TOKENS).repeat(_PROMPTS, 1)
    return {
        "input_ids": torch.zeros_like(positions),
        "attention_mask": torch.ones(_PROMPTS, _PAST + _TOKENS, dtype=torch.long),
        "position_ids": positions,
        **{name: keys.clone() for index in range(blocks) for name in _past(index)},
    }


def _past(index: int) -> tuple[str, str]:
    return f"past_key_values.{index}.key", f"past_key_values.{index}.value"


def _present(index: int) -> tuple[str, str]:
    return f"present.{index}.key", f"present.{index}.value"


class _GrowingLayer(CacheLayerMixin):
    """The cache of one block: all that came before, however far its attention sees."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self._past = keys.shape[-2]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys = torch.cat((self.keys, key_states), -2)
        self.values = torch.cat((self.values, value_states), -2)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._past + query_length, 0

    def get_seq_length(self) -> int:
        return self._past

    def get_max_length(self) -> int:
        return -1
