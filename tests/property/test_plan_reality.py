"""The plan's counts are the model's: planned on one side, counted in torch on the other."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_config
from transformers import AutoModelForCausalLM

from surgery.adapter.apply import apply_plan
from surgery.model.reader import read_anatomy
from surgery.plan.planner import make_plan
from surgery.recipe.schema import Recipe

fast = settings(max_examples=30, deadline=None)
SHARES = st.sampled_from(["pre 1/2", "post 1/2", "skip 1/2", "every 2 from 0", "[0]", "[-1]"])
MODULES = st.sampled_from([["attention", "mlp"], ["attention"], ["mlp"], ["o"], ["down", "o"]])
TRAIN = st.sampled_from(
    [["copies", "adapters"], ["copies"], ["adapters"], ["copies:*mlp*", "adapters:*lora_B*"]]
)
IN_PLACE = st.lists(
    st.sampled_from(["decoder", "blocks", "embeddings", "norm", "head", "*.1.*"]),
    min_size=1,
    max_size=3,
)


@st.composite
def models(draw):
    """A small random model of one of the families, on the CPU."""
    family, blocks = draw(st.sampled_from(FAMILIES)), draw(st.integers(2, 9))
    heads, per_head = draw(st.sampled_from([2, 4])), draw(st.sampled_from([4, 8]))
    hidden, tied = max(16, heads * per_head), draw(st.booleans())
    sizes = {"num_hidden_layers": blocks, "hidden_size": hidden, "num_attention_heads": heads}
    if family == "gpt2":
        sizes = {"n_layer": blocks, "n_embd": hidden, "n_head": heads, "n_inner": 2 * hidden}
    else:
        sizes |= {"intermediate_size": draw(st.integers(8, 40)), "num_key_value_heads": heads // 2}
    if family in ("qwen3", "gemma3_text"):
        sizes["head_dim"] = per_head
    config = tiny_config(family, tie_word_embeddings=tied, **sizes)
    return AutoModelForCausalLM.from_config(config)


@st.composite
def recipes(draw):
    """Copies and LoRA side by side, either of them alone, or the base in place."""
    kind = draw(st.sampled_from(["both", "copies", "adapters", "in place"]))
    if kind == "in place":
        return Recipe(model="memory", train=draw(IN_PLACE))
    share = draw(SHARES)
    copies = {"op": "duplicate", "blocks": [int(share[1:-1])] if share[0] == "[" else share}
    rank, modules = draw(st.integers(1, 4)), draw(MODULES)
    rest = "rest" if kind == "both" else copies["blocks"]
    adapters = {"op": "lora", "blocks": rest, "rank": rank, "modules": modules}
    operations = {"copies": copies, "adapters": adapters}
    operations = operations if kind == "both" else {kind: operations[kind]}
    train = [word for word in draw(TRAIN) if word.split(":")[0] in operations] or [*operations]
    return Recipe(model="memory", operations=operations, train=train)


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@given(model=models(), recipe=recipes())
@fast
def test_planned_parameters_are_those_that_torch_has(model, recipe):
    before = count(model.parameters())
    plan = make_plan(recipe, read_anatomy(model))
    changed = apply_plan(plan, model)
    after = list(changed.parameters())
    assert plan.base == before
    assert plan.added == count(after) - before
    assert plan.trainable == count(p for p in after if p.requires_grad)
    assert plan.added == sum(plan.by_operation().values())


@given(model=models(), recipe=recipes())
@fast
def test_each_edit_adds_its_own_tensors(model, recipe):
    plan = make_plan(recipe, read_anatomy(model))
    names = [tensor.name for edit in plan.edits for tensor in edit.tensors]
    shapes = {t.name: t.shape for edit in plan.edits for t in edit.tensors}
    changed = apply_plan(plan, model)
    if not plan.edits:
        return
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(changed)
    inner = {name.removeprefix("base_model.model."): tuple(t.shape) for name, t in saved.items()}
    assert len(set(names)) == len(names)
    assert inner == shapes
