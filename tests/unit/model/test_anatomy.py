"""What the anatomy says of unlike decoders, against what the models themselves hold.

Tiny models on the meta device; what is expected comes from their configs and modules, or is written
out here from their code.
"""

import re

import pytest
import torch
from support.shrink import tiny_config
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.meta_device import auto_class
from surgery.model.structure.inspector import inspect_model
from surgery.operations.block_selector import pick_blocks
from surgery.plan.planner import Plan, make_plan
from surgery.recipe.loading import load_recipe


def built(model_type: str, **changed) -> PreTrainedModel:
    config = tiny_config(model_type)
    for name, value in changed.items():
        setattr(config, name, value)
    with torch.device("meta"):
        return auto_class(config).from_config(config)


def anatomy_of(model_type: str, **changed) -> Anatomy:
    return inspect_model(built(model_type, **changed), model_type)


def lora_plan(anatomy: Anatomy, *modules: str) -> Plan:
    words = ["rank=2", f"operations.adapters.modules=[{','.join(modules)}]"]
    return make_plan(load_recipe("lora", words), anatomy)


def fault(anatomy: Anatomy, *modules: str) -> str:
    with pytest.raises(SurgeryError) as caught:
        lora_plan(anatomy, *modules)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "P203"
    return f"{diagnostic.what}; {diagnostic.why}"


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "mixtral", "zamba2", "nemotron_h", "llava", "bert", "gemma3"]
)
def test_parameters_are_those_of_the_model(model_type):
    model = built(model_type)
    sizes = {id(p): p.numel() for p in model.parameters()}
    anatomy = inspect_model(model, model_type)
    assert anatomy.parameters == sum(sizes.values())
    assert sum(anatomy.sizes.values()) == anatomy.parameters


def test_experts_in_one_parameter_are_counted_and_get_no_lora():
    anatomy = anatomy_of("mixtral")
    packed = {m.role: m for m in anatomy.block(0).matrices if m.experts}
    config = tiny_config("mixtral")
    assert {m.experts for m in packed.values()} == {config.num_local_experts}
    assert (packed["down"].outputs, packed["down"].inputs) == (64, 96)
    assert (packed["gate_up"].outputs, packed["gate_up"].inputs) == (192, 64)
    plan = lora_plan(anatomy, "attention", "mlp")
    assert {edit.path.split(".")[3] for edit in plan.loras()} == {"self_attn"}
    (note,) = [n for n in plan.notes if n.code == "P221"]
    assert "`mlp.experts.gate_up_proj`, `mlp.experts.down_proj`" in note.what
    assert "in one parameter" in fault(anatomy, "mlp")


def test_router_that_is_no_linear_module_is_seen_and_gets_no_lora():
    anatomy = anatomy_of("mixtral")
    assert anatomy.blocks_with("router") == (0, 1, 2, 3)
    assert "no linear module" in fault(anatomy, "attention", "router")


def test_shared_experts_get_lora_and_packed_ones_a_note():
    plan = lora_plan(anatomy_of("qwen2_moe"), "mlp")
    names = {edit.path.split(".", 3)[3] for edit in plan.loras()}
    assert names == {f"mlp.shared_expert.{role}_proj" for role in ("gate", "up", "down")}
    assert [note.code for note in plan.notes if note.severity == "note"].count("P221") == 1


def test_matrices_that_a_mixer_multiplies_itself_get_no_lora():
    anatomy = anatomy_of("mamba")
    taken = {m.name for m in anatomy.block(0).matrices if not m.apart}
    assert taken == {"mixer.in_proj"}
    assert "multiplied by MambaMixer itself" in fault(anatomy, "dt_proj")


def test_weights_read_under_an_option_alone_get_lora_without_it():
    plain, exact = anatomy_of("bloom"), anatomy_of("bloom", slow_but_exact=True)
    apart = [{m.name for m in a.block(0).matrices if m.apart} for a in (plain, exact)]
    assert apart == [set(), {"self_attention.dense", "mlp.dense_4h_to_h"}]


def test_linear_modules_of_a_models_own_making():
    assert not any(m.apart for m in anatomy_of("falcon").block(0).matrices)
    apart = {m.name: m.apart for m in anatomy_of("deepseek_v4").block(0).matrices}
    assert "DeepseekV4GroupedLinear" in apart["self_attn.o_a_proj"]


def test_names_that_peft_takes_for_others_get_no_lora():
    matrices = {m.name: m for m in anatomy_of("deepseek_v3").block(3).matrices}
    assert "PEFT takes" in matrices["mlp.shared_experts.up_proj"].apart
    assert matrices["self_attn.o_proj"].apart == ""
    every = [m for m in anatomy_of("deepseek_ocr2").block(0).matrices if not m.experts]
    assert all(m.apart for m in every)


@pytest.mark.parametrize("part", ["attention", "mixer", "mlp"])
def test_kinds_of_a_hybrid_are_those_of_its_config(part):
    anatomy, config = anatomy_of("nemotron_h"), tiny_config("nemotron_h")
    kinds = {"mixer": "mamba|linear_attention", "attention": "full_attention", "mlp": "mlp|moe"}
    wanted = [i for i, kind in enumerate(config.layers_block_type) if re.match(kinds[part], kind)]
    assert pick_blocks(f"all of {part}", anatomy.count, anatomy.blocks_with) == tuple(wanted)


def test_recurrent_blocks_are_mixers_whatever_their_name():
    anatomy, config = anatomy_of("recurrent_gemma"), tiny_config("recurrent_gemma")
    attends = [i for i, kind in enumerate(config.layers_block_type) if kind.endswith("attention")]
    assert set(anatomy.blocks_with("mixer")).isdisjoint(anatomy.blocks_with("attention"))
    assert anatomy.blocks_with("mlp") == tuple(range(anatomy.count))
    assert len(attends) >= len(anatomy.blocks_with("attention")) > 0


def test_roles_of_an_encoder_style_block():
    roles = {m.name: (m.part, m.role) for m in anatomy_of("bert").block(0).matrices}
    assert roles["attention.self.query"] == ("attention", "q")
    assert roles["attention.output.dense"] == ("attention", "o")
    assert roles["intermediate.dense"] == ("mlp", "up")
    assert roles["output.dense"] == ("mlp", "down")


def test_copies_of_blocks_that_share_get_their_own():
    anatomy = anatomy_of("zamba2")
    assert anatomy.sharing() == {3: 1}
    recipe = load_recipe("genieblue_skip", ["operations.copies.blocks=[3]", "~operations.adapters"])
    plan = make_plan(recipe.model_copy(update={"train": ("copies",)}), anatomy)
    assert plan.added == anatomy.block(3).parameters
    assert [note.what for note in plan.notes if note.code == "P222"] == [
        "the copies of blocks 3 share no parameters"
    ]


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl", "gemma3", "idefics3", "florence2"])
def test_towers_are_never_taken_for_the_decoder(model_type):
    model = built(model_type)
    text = model.config.get_text_config(decoder=True)
    anatomy = inspect_model(model, model_type)
    assert anatomy.count == text.num_hidden_layers
    owner = model.get_submodule(anatomy.blocks_path.rpartition(".")[0])
    assert type(getattr(owner, "config", text)) is type(text)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma3n_text", "donors chosen by their position"),
        ("qwen3_vl", "image features"),
        ("zamba2", "share parameters"),
        ("hrm_text", "in a loop"),
    ],
)
def test_depth_is_refused_where_it_depends_on_positions(model_type, reason):
    refusals = anatomy_of(model_type).refusals
    assert reason in refusals["insert"]
    assert reason in refusals["drop"]
    assert "insert" not in anatomy_of("llama").refusals


class _Config(PretrainedConfig):
    model_type = "never-seen"
    num_hidden_layers: int = 3


class _Stage(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.ModuleDict({"query": nn.Linear(width, width)})
        self.feed_forward = nn.ModuleDict({"up_proj": nn.Linear(width, 2 * width)})


class _Model(PreTrainedModel):
    config_class = _Config

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(10, 8)
        self.sights = nn.ModuleList(_Stage(64) for _ in range(5))
        self.trunk = nn.ModuleDict({"stages": nn.ModuleList(_Stage(8) for _ in range(3))})

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return None


def test_type_never_seen_before_is_read_by_its_structure():
    anatomy = inspect_model(_Model(_Config()), "never seen")
    assert anatomy.blocks_path == "trunk.stages"
    assert anatomy.block(0).module_names() == {"attention", "q", "mlp", "up"}
    assert anatomy.parameters == 10 * 8 + 5 * (64 * 65 + 128 * 65) + 3 * (8 * 9 + 16 * 9)
