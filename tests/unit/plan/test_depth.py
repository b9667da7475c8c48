"""Inserted and dropped blocks: the right blocks, in the right order, that compute the right thing.

Compared with the base itself, whose blocks are run in the wanted order by hand, without a cache.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from surgery.adapter.apply import apply_plan, trainable_parameters
from surgery.adapter.folder import load_adapter, load_base, save_adapter, write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.numerics import frozen
from surgery.model.reader import read_anatomy
from surgery.plan.depth.changes import new_depth, sources_of
from surgery.plan.depth.config import candidate_depth_keys, with_depth
from surgery.plan.planner import Plan, make_plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.recipe.schema import Recipe
from surgery.verification.runner import verify_adapter
from tests.tiny import CONVERTED, FAMILIES, computed, is_rounding, tiny_model

IDS = torch.arange(3, 27).reshape(2, 12)
WINDOWED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}


def recipe(*operations: dict[str, object], train: tuple[str, ...] = ("decoder",)) -> Recipe:
    named = {f"op{i}": operation for i, operation in enumerate(operations)}
    content = {"name": "deeper", "model": "in memory", "operations": named, "train": list(train)}
    return Recipe.model_validate(content)


def insert(**fields: object) -> dict[str, object]:
    return {"op": "insert", **fields}


def drop(blocks: object) -> dict[str, object]:
    return {"op": "drop", "blocks": blocks}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def saved(tmp_path: Path, family: str, **changed: object) -> tuple[object, str]:
    model = tiny_model(family, **changed)
    model.save_pretrained(tmp_path / "base")
    return model, str(tmp_path / "base")


def planned(
    folder: str, *operations: dict[str, object], train: tuple[str, ...] = ("decoder",)
) -> Plan:
    content = recipe(*operations, train=train).model_copy(update={"model": folder})
    return plan_recipe(content, weights=True)


def in_order(model: Any, sources: tuple[int, ...], path: str) -> torch.Tensor:
    """Logits of the base whose blocks run in another order, each as often as it is named.

    Block by block: the model runs once for each position, and hooks replace what comes out of a
    block by what the last wanted block made of what came before.
    """
    blocks = model.get_submodule(path)
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        for block in blocks
    ]
    computed(model, input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    hidden = calls[0][0][0]
    for source in sources:
        args, kwargs = calls[source]
        with frozen(model):
            output = blocks[source](hidden, *args[1:], **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
    last = blocks[len(blocks) - 1]
    handle = last.register_forward_hook(
        lambda _, args, output: (hidden, *output[1:]) if isinstance(output, tuple) else hidden
    )
    logits = computed(model, input_ids=IDS, use_cache=False)
    handle.remove()
    return logits


CASES = {
    "after every second": ((insert(blocks="every 2"),), (0, 1, 1, 2, 3, 3)),
    "twice": ((insert(blocks=[0], times=2),), (0, 0, 0, 1, 2, 3)),
    "ranges": ((insert(ranges=[[0, 3], [1, 4]]),), (0, 1, 2, 1, 2, 3)),
    "shares": ((insert(ranges=[[0, "3/4"], ["1/4", "4/4"]]),), (0, 1, 2, 1, 2, 3)),
    "all again": ((insert(ranges=[[0, 4], [0, 4]]),), (0, 1, 2, 3, 0, 1, 2, 3)),
    "drop": ((drop([1, 2]),), (0, 3)),
    "both": ((drop([0]), insert(blocks=[2])), (1, 2, 2, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_new_depth_is_the_blocks_in_that_order(case: str, tiny_anatomy: Anatomy) -> None:
    operations, sources = CASES[case]
    plan = make_plan(recipe(*operations), tiny_anatomy)
    assert sources_of(plan.depth) == sources
    assert sources_of(new_depth(plan.edits, 4)) == sources
    assert plan.total == plan.base + plan.added - plan.removed == plan.result.parameters


def test_llama_pro_of_the_3b_model_adds_what_genieblue_copies() -> None:
    plan = plan_recipe(load_recipe("llama_pro", ["model=builtin/qwen2.5-3b"]))
    assert len(plan.depth) == 45
    assert plan.added == plan.trainable == 693_692_928
    assert plan.total == 3_085_938_688 + 693_692_928


@pytest.fixture
def tiny_anatomy() -> Anatomy:
    return read_anatomy(tiny_model("qwen2"))


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_computes_the_blocks_in_that_order(
    case: str, family: str, tmp_path: Path
) -> None:
    operations, sources = CASES[case]
    model, folder = saved(tmp_path, family)
    plan = planned(folder, *operations)
    write_adapter(plan, tmp_path / "out")
    deeper = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found = computed(deeper, input_ids=IDS, use_cache=False)
    assert is_rounding(found, in_order(model, sources, plan.anatomy.blocks_path))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text"])
def test_windows_go_along_with_their_blocks(family: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, family, use_sliding_window=True, **WINDOWED)
    plan = planned(folder, insert(blocks=[0, 1]))
    write_adapter(plan, tmp_path / "out")
    deeper = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    slide, full = "sliding_attention", "full_attention"
    assert deeper.config.layer_types == [slide, slide, full, full, slide, full]
    found = computed(deeper, input_ids=IDS, use_cache=False)
    assert is_rounding(found, in_order(model, (0, 0, 1, 1, 2, 3), plan.anatomy.blocks_path))
    cached, plain = (
        deeper.generate(IDS, max_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_disk_and_memory_give_the_same_tensors(family: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, family)
    plan = planned(folder, insert(blocks="every 2", start="identity"), drop([0]))
    write_adapter(plan, tmp_path / "disk")
    memory = apply_plan(plan, model)
    save_adapter(plan, memory, tmp_path / "memory")
    from_disk, from_memory = (load_adapter(tmp_path / name) for name in ("disk", "memory"))
    wanted = memory.state_dict()
    for other in (from_disk, from_memory):
        found = other.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    logits = [computed(m, input_ids=IDS) for m in (memory, from_disk, from_memory)]
    assert is_rounding(logits[0], logits[1])
    assert is_rounding(logits[0], logits[2])


def test_identity_starts_as_the_base(family: str, tmp_path: Path) -> None:
    model, folder = saved(tmp_path, family)
    plan = planned(folder, insert(blocks="every 2", start="identity"), train=("op0",))
    write_adapter(plan, tmp_path / "out")
    deeper = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found, wanted = (computed(m, input_ids=IDS) for m in (deeper, model))
    assert is_rounding(found, wanted)
    report = verify_adapter(tmp_path / "out")
    assert report.passed, [o.what for o in report.outcomes if o.state == "failed"]


def test_only_what_the_plan_trains_requires_gradients(tmp_path: Path) -> None:
    model, folder = saved(tmp_path, "qwen2")
    plan = planned(folder, insert(blocks=[1], start="identity"), train=("op0",))
    deeper = apply_plan(plan, model)
    trained = {name for name, p in deeper.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in trainable_parameters(plan, deeper)}
    assert trained == {n for n, _ in deeper.named_parameters() if n.startswith("model.layers.2.")}
    assert sum(deeper.get_parameter(name).numel() for name in trained) == plan.trainable


def test_bytes_of_the_plan_are_those_on_disk(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "llama")
    plan = planned(folder, insert(blocks="all"))
    write_adapter(plan, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "plan.json").read_text())
    files = list((tmp_path / "out").iterdir())
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert document["bytes"]["adapter"] == sum(file.stat().st_size for file in weights)
    assert document["bytes"]["written"] == sum(file.stat().st_size for file in files)
    assert document["depth"] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_shards_have_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = saved(tmp_path, "llama")
    monkeypatch.setattr("surgery.storage.safetensors.shards.SHARD_BYTES", 60_000)
    plan = planned(folder, insert(blocks="all"))
    write_adapter(plan, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    deeper = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found = computed(deeper, input_ids=IDS, use_cache=False)
    assert is_rounding(found, in_order(model, (0, 0, 1, 1, 2, 2, 3, 3), "model.layers"))


REFUSED = {
    "P217": (insert(blocks=[0]), {"op": "lora", "blocks": "all", "modules": ["q"]}),
    "P202": (drop("all"),),
    "P205": (drop([0]), drop([0, 1])),
    "P220": (insert(ranges=[[0, 3], [2, 3]]),),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refused_with_its_code(code: str, tiny_anatomy: Anatomy) -> None:
    with pytest.raises(SurgeryError) as caught:
        make_plan(recipe(*REFUSED[code]), tiny_anatomy)
    assert code in {d.code for d in caught.value.diagnostics}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[0, 9]], "picks no blocks"),
        ([[2, 2]], "picks no blocks"),
        ([[0, 2], [3, 4]], "leave out block 2"),
        ([[2, 4], [0, 4]], "change the order"),
    ],
)
def test_ranges_that_mean_no_depth(ranges: object, message: str, tiny_anatomy: Anatomy) -> None:
    with pytest.raises(SurgeryError, match=message):
        make_plan(recipe(insert(ranges=ranges)), tiny_anatomy)


def test_a_period_that_no_config_can_express_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "jamba",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        use_mamba_kernels=False,
        pad_token_id=0,
    )
    config.save_pretrained(tmp_path)
    content = recipe(insert(blocks=[0])).model_copy(update={"model": str(tmp_path)})
    with pytest.raises(SurgeryError) as caught:
        plan_recipe(content)
    assert caught.value.diagnostics[0].code == "P218"
    whole = recipe(insert(ranges=[[0, 4], [0, 4]])).model_copy(update={"model": str(tmp_path)})
    assert len(plan_recipe(whole).depth) == 8


def test_a_norm_after_the_sum_can_not_start_as_an_identity(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "opt",
        vocab_size=64,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        pad_token_id=0,
    )
    config.save_pretrained(tmp_path)
    content = recipe(insert(blocks=[0], start="identity"))
    with pytest.raises(SurgeryError) as caught:
        plan_recipe(content.model_copy(update={"model": str(tmp_path)}))
    assert caught.value.diagnostics[0].code == "P219"


def test_only_whole_numbers_count_blocks() -> None:
    text = {"num_hidden_layers": 1, "share_layers": True, "layer_scale": 1.0, "n_layer": 1}
    assert candidate_depth_keys(text, "num_hidden_layers", 1) == [
        ("num_hidden_layers", "n_layer"),
        ("num_hidden_layers",),
        ("n_layer",),
        (),
    ]


@pytest.mark.parametrize("family", CONVERTED)
def test_packed_experts_start_as_an_identity(family: str, tmp_path: Path) -> None:
    _, folder = saved(tmp_path, family)
    plan = planned(folder, insert(blocks="every 2", start="identity"), train=("op0",))
    write_adapter(plan, tmp_path / "out")
    failed = [o.what for o in verify_adapter(tmp_path / "out").outcomes if o.state == "failed"]
    assert not failed


def test_lists_and_positions_follow_their_blocks() -> None:
    text = {
        "num_hidden_layers": 4,
        "n_head": 4,
        "layer_types": ["a", "b", "c", "d"],
        "mlp_only_layers": [1, 3],
        "eos_token_id": [1, 2, 3, 4],
        "hybrid_override_pattern": "M-*E",
        "no_rope_layers": [1, 1, 0, 1],
    }
    assert with_depth(text, (0, 1, 1, 3), 4, ("num_hidden_layers",)) == {
        "num_hidden_layers": 4,
        "layer_types": ["a", "b", "b", "d"],
        "mlp_only_layers": [1, 2, 3],
        "hybrid_override_pattern": "M--E",
        "no_rope_layers": [1, 1, 1, 1],
    }


def test_the_tokenizer_goes_along_from_disk_and_from_memory(tmp_path: Path) -> None:
    plan = plan_recipe(load_recipe("llama_pro", []), weights=True)
    assert plan.files is not None
    write_adapter(plan, tmp_path / "disk")
    save_adapter(plan, apply_plan(plan, load_base(str(plan.files.folder))), tmp_path / "memory")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "disk" / name).read_bytes() == (plan.files.folder / name).read_bytes()
        assert (tmp_path / "memory" / name).exists()
    assert verify_adapter(tmp_path / "memory").passed
