"""Which forms a plan has, what their graphs look like, and which have none."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support.conform import save_tiny as save_type
from tiny import save_tiny, tiny_model
from torch import nn

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.graphs.block.forms import Shape
from surgery.graphs.block.tracer import Tracer
from surgery.graphs.rms_norm import RMSNorm, rewrite_norms
from surgery.graphs.torch_export import module_of
from surgery.graphs.writer import initializer_bytes, save
from surgery.model.reader import read_anatomy
from surgery.plan.planner import make_plan, plan_recipe
from surgery.recipe.loading import load_recipe

PREFILL, DECODE = Shape("prefill", 8, 16), Shape("decode", 1, 16)
BUILTIN = "builtin/tiny-qwen2"


def tracer_of(recipe: str = "full_finetune", model: object = BUILTIN, *overrides: str) -> Tracer:
    return Tracer(plan_recipe(load_recipe(recipe, [f"model={model}", *overrides])))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def shapes(model: ir.Model) -> dict[str, list[int]]:
    return {str(value.name): list(value.shape.numpy()) for value in model.graph.inputs}


@pytest.fixture(scope="module")
def skip() -> Tracer:
    return tracer_of("genieblue_skip")


def test_full_width_has_a_graph_without_weights() -> None:
    tracer = tracer_of("genieblue_skip", "builtin/qwen2.5-3b")
    lora, block = tracer.forms
    assert (lora.name, len(lora.blocks), lora.module_path) == ("block+lora", 27, "model.layers.0")
    assert (block.name, block.blocks, block.module_path) == (
        "block",
        tuple(range(3, 36, 4)),
        "model.layers.3",
    )
    traced = tracer.trace(block, Shape("decode", 1, 64))
    assert shapes(traced.model) == {
        "hidden": [1, 1, 2048],
        "mask": [1, 1, 1, 65],
        "cos": [1, 1, 128],
        "sin": [1, 1, 128],
        "past_key": [1, 2, 64, 128],
        "past_value": [1, 2, 64, 128],
    }
    down = traced.model.graph.initializers["model.layers.3.mlp.down_proj.weight"]
    assert (list(down.shape.numpy()), down.dtype, down.const_value) == (
        [11008, 2048],
        ir.DataType.FLOAT,
        None,
    )
    assert initializer_bytes(traced.model) < 1000


@pytest.mark.parametrize("shape", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_graph_is_the_same_whatever_its_weights(skip: Tracer, shape: Shape) -> None:
    for form in skip.forms:
        bare = skip.trace(form, shape).model
        full = skip.trace(form, shape, weights="random").model
        assert ops(bare) == ops(full)
        assert shapes(bare) == shapes(full)
        assert bare.graph.initializers.keys() == full.graph.initializers.keys()
        assert "RMSNormalization" in ops(bare)
        turned = {node.inputs[0].name for node in bare.graph if node.op_type == "Transpose"}
        assert not turned & bare.graph.initializers.keys()


def test_nodes_know_their_module_also_from_a_file(skip: Tracer, tmp_path: Path) -> None:
    lora = skip.trace(skip.forms[0], DECODE, weights="random")
    save(lora.model, tmp_path / "lora.onnx")
    text = (tmp_path / "lora.onnx").read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in text
    nodes = list(ir.load(tmp_path / "lora.onnx").graph)
    products = [module_of(node) for node in nodes if node.op_type == "MatMul"]
    assert products.count("model.layers.0.self_attn.q_proj") == 3  # its own, A, B
    assert {module_of(node) for node in nodes} <= {name for name, _ in tiny_names("model.layers.0")}


def tiny_names(module_path: str) -> list[tuple[str, nn.Module]]:
    from surgery.model.meta_device import meta_model
    from surgery.model.source import find_model

    block = meta_model(find_model(BUILTIN)).get_submodule(module_path)
    return list(block.named_modules(prefix=module_path))


def test_large_weights_lie_beside_the_graph(skip: Tracer, tmp_path: Path) -> None:
    traced = skip.trace(skip.forms[1], DECODE, weights="random")
    save(traced.model, tmp_path / "in" / "a.onnx", large=1)
    save(traced.model, tmp_path / "b.onnx")
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["a.onnx", "a.onnx.data"]
    assert [p.name for p in tmp_path.glob("b*")] == ["b.onnx"]
    onnx.checker.check_model(tmp_path / "in" / "a.onnx")
    large, small = (onnx.load(tmp_path / name) for name in ("in/a.onnx", "b.onnx"))
    for one, other in zip(large.graph.initializer, small.graph.initializer, strict=True):
        assert np.array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    with pytest.raises(ValueError, match="12 initializers have no values"):
        save(skip.trace(skip.forms[1], DECODE).model, tmp_path / "c.onnx")
    assert not list(tmp_path.glob("*c.onnx*"))


def test_forms_follow_settings_and_edits(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    gemma = save_tiny(tmp_path / "gemma", "gemma3_text", layer_types=kinds)
    assert [(f.name, f.blocks) for f in tracer_of("full_finetune", gemma).forms] == [
        ("block", (0, 2)),
        ("block@1", (1, 3)),
    ]
    both = {
        "low": {"op": "lora", "blocks": [0, 1], "rank": 2},
        "high": {"op": "lora", "blocks": [2], "rank": 4},
    }
    (tmp_path / "two.yaml").write_text(
        json.dumps({"defaults": ["base", "_self_"], "operations": both, "train": ["low", "high"]})
    )
    tracer = tracer_of(str(tmp_path / "two.yaml"), save_tiny(tmp_path / "base"))
    assert [(f.name, f.blocks, f.operation) for f in tracer.forms] == [
        ("block+lora", (0, 1), "low"),
        ("block+lora@2", (2,), "high"),
        ("block", (3,), ""),
    ]
    pairs = [
        n for n in tracer.trace(tracer.forms[1], DECODE).names if n.endswith("q_proj.lora_A.weight")
    ]
    assert pairs == ["model.layers.2.self_attn.q_proj.lora_A.weight"]


def test_copies_and_new_depth_need_no_form_of_their_own() -> None:
    for recipe in ("genieblue_pre", "llama_pro", "drop_blocks", "solar"):
        names = [form.name for form in tracer_of(recipe).forms]
        assert names in (["block"], ["block", "block+lora"])


@pytest.mark.parametrize(
    ("recipe", "operation"), [("cogvlm_skip", "experts"), ("wings", "learners")]
)
def test_routing_by_data_is_refused_with_its_reason(recipe: str, operation: str, capfd) -> None:
    tracer = tracer_of(recipe)
    form = next(f for f in tracer.forms if f.operation == operation)
    with pytest.raises(SurgeryError) as caught:
        tracer.trace(form, PREFILL)
    said = caught.value.diagnostics[0]
    assert (said.code, said.key) == ("X110", f"operations.{operation}")
    assert form.module_path in said.what
    assert "GuardOnDataDependent" in said.why or "router" in said.why
    assert capfd.readouterr() == ("", "")  # torch.export prints what it has traced so far


@pytest.mark.parametrize(
    ("model_type", "code", "why"),
    [
        ("mixtral", "X110", "GuardOnDataDependentSymNode"),
        ("mamba", "X111", "0 pairs of keys and values"),
        ("deepseek_v32", "X111", "an indexer"),
    ],
)
def test_other_blocks_are_refused(model_type: str, code: str, why: str, tmp_path: Path) -> None:
    save_type(model_type, tmp_path / "model")
    tracer = tracer_of("full_finetune", tmp_path / "model")
    with pytest.raises(SurgeryError) as caught:
        tracer.trace(tracer.forms[0], DECODE)
    said = caught.value.diagnostics[0]
    assert (said.code, said.key) == (code, "model")
    assert why in said.why


def test_what_has_no_weights_says_so() -> None:
    bare = tracer_of("lora", "builtin/qwen2.5-0.5b")
    with pytest.raises(SurgeryError, match="M102"):
        bare.trace(bare.forms[0], DECODE, weights="real")
    model = tiny_model()
    with pytest.raises(SurgeryError, match="X112"):
        Tracer(make_plan(load_recipe("lora", []), read_anatomy(model)))


class Plus(nn.Module):
    """Gemma's: one more than its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.zeros(48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed * (1.0 + self.weight)


class Louder(Plus):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.01 * super().forward(x)


def test_norms_are_known_by_what_they_do() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    block = nn.ModuleDict(
        {
            "llama": LlamaRMSNorm(48),
            "plus": Plus(),
            "layer": nn.LayerNorm(48, eps=1e-6, bias=False),
            "louder": Louder(),
            "other": nn.Linear(48, 48),
        }
    )
    nn.init.normal_(block["plus"].weight)
    x = torch.randn(2, 3, 4, 48)
    wanted = block["plus"](x)
    assert rewrite_norms(block) == ["llama", "plus"]
    torch.testing.assert_close(block["plus"](x), wanted)
    with torch.device("meta"):
        bare = nn.ModuleDict({"llama": LlamaRMSNorm(48), "config": nn.Identity()})
    assert rewrite_norms(bare) == ["llama"]
    assert bare["llama"].weight.is_meta


def test_norm_of_width_32_has_two_dimensions(tmp_path: Path) -> None:
    norm = RMSNorm(torch.randn(32), 1e-6)
    x = torch.randn(1, 2, 3, 32)
    torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (32,), norm.weight, 1e-6))
    heads = {"head_dim": 32, "hidden_size": 64}
    tracer = tracer_of("full_finetune", save_tiny(tmp_path / "base", "qwen3", **heads))
    graph = tracer.trace(tracer.forms[0], PREFILL).model.graph
    ranks = {len(n.outputs[0].shape) for n in graph if n.op_type == "RMSNormalization"}
    assert ranks == {2, 3}  # heads of 32, and the hidden state of 64
