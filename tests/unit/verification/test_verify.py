"""Every check passes on a sound adapter and fails on the sabotage that it is there for."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from surgery.adapter.folder import load_adapter, save_adapter, write_adapter
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.quiet import quiet
from surgery.paths import batch_rows as rows
from surgery.paths.path_state import MULTIMODAL, Switch, SwitchedLayer
from surgery.plan.planner import plan_recipe
from surgery.plugins import modules_in
from surgery.recipe import loading as compose
from surgery.storage.file_names import ADAPTER
from surgery.verification.checks.cached_generation import CachedGeneration
from surgery.verification.context import (
    VerificationContext,
    checked_plan,
    forward_logits,
    open_context,
    tensor_digests,
)
from surgery.verification.runner import Check, Outcome, known_checks, run_checks, verify_adapter

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "llama": "Llama",
    "gemma3_text": "Gemma3",
    "qwen3": "Qwen3",
    "phi3": "Phi3",
}
CHECKS = {check.name: check for check in known_checks()}


@pytest.fixture(autouse=True)
def calm() -> Any:
    """One thread, which is faster for models this small, and no chatter."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with quiet():
        yield
    torch.set_num_threads(threads)


def save_model(folder: Path, model_type: str, **changes: Any) -> Path:
    """Save a small model with random weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, out: Path, recipe: str, *overrides: str) -> Path:
    """Write an adapter disk to disk."""
    words = [f"model={base}", *overrides]
    write_adapter(plan_recipe(compose.load_recipe(recipe, words), weights=True), out)
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen2 decoder of four blocks."""
    return save_model(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GenieBlue-Skip on it: block 3 is copied."""
    out = tmp_path_factory.mktemp("adapters") / "genieblue"
    return make_adapter(base, out, "genieblue_skip", "rank=4")


@pytest.fixture
def context(adapter: Path) -> VerificationContext:
    """A context of its own for each test, to be broken."""
    return opened_context(adapter)


def opened_context(folder: Path) -> VerificationContext:
    """Load an adapter onto its base."""
    return open_context(checked_plan(folder), folder)


def run(name: str, context: VerificationContext) -> Outcome:
    """Run one check as `verify` does, exceptions and all."""
    outcomes = {outcome.check: outcome for outcome in run_checks(context, checks=[CHECKS[name]])}
    return outcomes[name]


def copied_block(context: VerificationContext) -> Any:
    """The wrapper of the one copied block."""
    decoder: Any = context.decoder
    return decoder.model.layers[3]


class OnFullDisk(Check):
    """A check that writes where nothing more fits."""

    def run(self, context: VerificationContext) -> Outcome:
        raise SurgeryError(Diagnostic("A302", "the disk is full"))


def test_a_full_disk_is_no_fault_of_the_adapter(context: VerificationContext) -> None:
    with pytest.raises(SurgeryError) as caught:
        list(run_checks(context, checks=[OnFullDisk()]))
    assert caught.value.diagnostics[0].code == "A302"


# -- sound adapters -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["genieblue_skip", "genieblue_pre", "lora"])
def test_every_check_passes_on_a_fresh_adapter(base: Path, tmp_path: Path, recipe: str) -> None:
    out = make_adapter(base, tmp_path / "out", recipe, "rank=4")
    verification = verify_adapter(out)
    assert {o.check: o.what for o in verification.outcomes if not o.passed} == {}
    assert [o.check for o in verification.outcomes] == sorted(CHECKS)
    assert verification.passed


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_check_passes_on_other_families(model_type: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", model_type)
    out = make_adapter(base, tmp_path / "out", "genieblue_skip", "rank=4")
    failed = {o.check: o.what for o in verify_adapter(out).outcomes if not o.passed}
    assert failed == {}


def test_every_check_passes_in_bfloat16(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "qwen2")
    model = transformers.AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    out = make_adapter(tmp_path / "bf16", tmp_path / "out", "genieblue_skip", "rank=4")
    failed = {o.check: o.what for o in verify_adapter(out).outcomes if not o.passed}
    assert failed == {}


def test_a_trained_adapter_passes_and_is_reported_as_trained(
    context: VerificationContext, tmp_path: Path
) -> None:
    context.perturb()
    save_adapter(context.plan, context.model, tmp_path / "trained")
    verification = verify_adapter(tmp_path / "trained")
    start = next(o for o in verification.outcomes if o.check == "start_equality")
    assert verification.passed
    assert start.measured["stored_at_start"] is False
    assert "trained" in start.what


def test_the_checks_leave_every_bit_and_every_flag_as_it_was(context: VerificationContext) -> None:
    before = tensor_digests(context.model)
    flags = [p.requires_grad for p in context.model.parameters()]
    assert all(outcome.passed for outcome in run_checks(context))
    assert tensor_digests(context.model) == before
    assert [p.requires_grad for p in context.model.parameters()] == flags
    assert all(p.grad is None for p in context.model.parameters())
    assert torch.equal(forward_logits(context.untouched, context.prompts), context.reference.logits)


def test_each_check_is_one_file_with_its_page() -> None:
    modules = {
        module.__name__.rpartition(".")[2] for module in modules_in("surgery.verification.checks")
    }
    assert set(CHECKS) == modules
    assert all(len((type(check).__doc__ or "").splitlines()) > 2 for check in CHECKS.values())


# -- in place -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finetuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blocks train in place, the embeddings don't."""
    out = tmp_path_factory.mktemp("adapters") / "blocks"
    return make_adapter(base, out, "full_finetune", "train=[blocks]")


def overwrite(folder: Path, name: str) -> None:
    """Change one tensor of a checkpoint."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_in_place_checks_that_need_two_paths_are_skipped_with_the_reason(finetuned: Path) -> None:
    verification = verify_adapter(finetuned)
    skipped = {o.check: o.what for o in verification.outcomes if o.state == "skipped"}
    assert set(skipped) == {"row_paths", "text_path"}
    assert all("the base itself changes" in what for what in skipped.values())
    assert verification.passed


@pytest.mark.parametrize(
    ("tensor", "state"),
    [("model.layers.0.mlp.up_proj.weight", "passed"), ("model.embed_tokens.weight", "failed")],
)
def test_in_place_only_planned_tensors_may_differ_from_the_original(
    base: Path, tmp_path: Path, tensor: str, state: str
) -> None:
    out = make_adapter(base, tmp_path / "out", "full_finetune", "train=[blocks]")
    overwrite(out, tensor)
    outcome = run("start_equality", opened_context(out))
    assert outcome.state == state
    assert outcome.measured["stored_at_start"] is False


def test_in_place_gradients_fails_when_a_frozen_tensor_trains(finetuned: Path) -> None:
    context = opened_context(finetuned)
    context.model.get_input_embeddings().weight.requires_grad_(True)
    assert run("gradients", context).state == "failed"


# -- sabotage -------------------------------------------------------------------------------------


def test_start_equality_fails_when_the_base_was_overwritten(context: VerificationContext) -> None:
    copied_block(context).original_module.mlp.up_proj.weight.data[0, 0] += 1
    outcome = run("start_equality", context)
    assert outcome.state == "failed"
    assert "text path" in outcome.what


def test_start_equality_fails_when_a_copy_is_built_otherwise(context: VerificationContext) -> None:
    copied_block(context).modules_to_save[ADAPTER].input_layernorm.variance_epsilon = 0.1
    outcome = run("start_equality", context)
    assert outcome.state == "failed"
    assert "multimodal path" in outcome.what
    assert "text path" not in outcome.what
    assert run("text_path", context).passed


def test_text_path_fails_when_an_original_was_overwritten(context: VerificationContext) -> None:
    copied_block(context).original_module.mlp.up_proj.weight.data[0, 0] += 1
    assert "as stored" in run("text_path", context).what


def test_text_path_fails_when_a_tensor_that_no_prompt_reaches_was_overwritten(
    context: VerificationContext,
) -> None:
    used = {*context.prompts.ids.flatten().tolist(), *context.reference.tokens.flatten().tolist()}
    unused = next(token for token in range(3, 64) if token not in used)
    decoder: Any = context.decoder
    decoder.model.embed_tokens.weight.data[unused] += 1e-3
    what = run("text_path", context).what
    assert what == "1 tensors of the base have changed, model.embed_tokens.weight first"


def test_text_path_fails_when_a_copy_shares_its_originals_parameter(
    context: VerificationContext,
) -> None:
    wrapper = copied_block(context)
    wrapper.modules_to_save[ADAPTER].mlp.up_proj.weight = wrapper.original_module.mlp.up_proj.weight
    outcome = run("text_path", context)
    assert outcome.state == "failed"
    assert "after random changes" in outcome.what


def test_text_path_fails_when_the_multimodal_path_is_dead(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SwitchedLayer, "disable_adapters", True)
    assert "ignores random changes" in run("text_path", context).what


def test_text_path_fails_when_the_switch_is_stuck(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Switch, "path", MULTIMODAL)
    assert "after random changes" in run("text_path", context).what


def test_cached_generation_fails_when_two_blocks_share_a_cache_slot(
    context: VerificationContext,
) -> None:
    copied_block(context).modules_to_save[ADAPTER].self_attn.layer_idx = 0
    outcome = run("cached_generation", context)
    assert outcome.state == "failed"
    assert "multimodal path" in outcome.what or "ended in" in outcome.what


def test_cached_generation_fails_when_positions_restart_with_the_cache(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder: Any = context.decoder
    attention = copied_block(context).modules_to_save[ADAPTER].self_attn
    honest = attention.forward

    def restarting(hidden_states: Any, position_embeddings: Any, **kwargs: Any) -> Any:
        zero = torch.arange(hidden_states.shape[1])[None].expand(len(hidden_states), -1)
        turned = decoder.model.rotary_emb(hidden_states, zero)
        return honest(hidden_states=hidden_states, position_embeddings=turned, **kwargs)

    monkeypatch.setattr(attention, "forward", restarting)
    outcome = run("cached_generation", context)
    assert outcome.state == "failed"
    assert "text path" not in outcome.what


def test_cached_generation_takes_a_tie_for_a_tie(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.zeros(4, 16, 8)
    answers = iter([torch.zeros(4, 16, dtype=int), torch.ones(4, 16, dtype=int)] * 4)
    name = f"{CachedGeneration.__module__}.generate_greedily"
    monkeypatch.setattr(name, lambda *args, **kwargs: (next(answers), logits))
    outcome = run("cached_generation", context)
    assert outcome.passed
    assert outcome.measured["ties"] == 16


def test_blocks_executed_fails_when_the_config_tells_fewer_blocks(
    context: VerificationContext,
) -> None:
    context.decoder.config.num_hidden_layers = 3  # type: ignore[union-attr]
    assert "3 blocks ran, and the plan has 4" in run("blocks_executed", context).what


def test_blocks_executed_fails_when_copies_run_along_the_text_path(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Switch, "path", MULTIMODAL)
    what = run("blocks_executed", context).what
    assert "the copy of block 3 ran instead of the original" in what
    assert "LoRA ran on 21 matrices on the text path" in what


def test_blocks_executed_fails_when_blocks_are_out_of_order(context: VerificationContext) -> None:
    decoder: Any = context.decoder
    layers = decoder.model.layers
    order = [layers[i] for i in (0, 2, 1, 3)]
    layers.__class__ = type("Other", (torch.nn.ModuleList,), {"__getitem__": lambda _, i: order[i]})
    what = run("blocks_executed", context).what
    assert "the original of block 2 ran instead of the original of block 1" in what


def test_blocks_executed_leaves_no_hooks(context: VerificationContext) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in context.model.modules())

    before = hooks()
    run("blocks_executed", context)
    assert hooks() == before


def test_gradients_fails_when_another_parameter_trains(context: VerificationContext) -> None:
    copied_block(context).original_module.mlp.up_proj.weight.requires_grad_(True)
    context.decoder.get_parameter("model.norm.weight").requires_grad_(True)
    outcome = run("gradients", context)
    assert "other parameters get a gradient" in outcome.what
    assert "model.norm.weight" in outcome.what


def test_gradients_fails_when_a_planned_parameter_is_frozen(context: VerificationContext) -> None:
    copied_block(context).modules_to_save[ADAPTER].mlp.up_proj.weight.requires_grad_(False)
    assert "1 planned parameters get no gradient" in run("gradients", context).what


def test_gradients_fails_when_a_forward_pass_writes_to_the_base(
    context: VerificationContext,
) -> None:
    norm = context.decoder.get_submodule("model.norm")

    def drift(module: Any, args: Any) -> None:
        module.weight.data += 0.01

    handle = norm.register_forward_pre_hook(drift)
    outcome = run("gradients", context)
    handle.remove()
    assert "don't train have changed" in outcome.what


def saves(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PEFT save what `change` makes of its tensors."""
    from peft import peft_model

    honest = peft_model.get_peft_model_state_dict
    monkeypatch.setattr(
        peft_model, "get_peft_model_state_dict", lambda *a, **k: change(honest(*a, **k))
    )


def test_save_reload_fails_when_a_tensor_is_not_saved(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves(lambda tensors: dict(list(tensors.items())[1:]), monkeypatch)
    outcome = run("save_reload", context)
    assert outcome.state == "failed"
    assert "A402" in outcome.what


def test_save_reload_fails_when_a_tensor_is_rounded(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves(lambda tensors: {n: t.bfloat16().float() for n, t in tensors.items()}, monkeypatch)
    outcome = run("save_reload", context)
    assert "tensors are loaded with other values" in outcome.what
    assert "plain peft gives other logits" in outcome.what


def test_save_reload_fails_when_the_config_tells_another_scale(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.adapter import save

    honest = save.side_files

    def twice(*args: Any) -> dict[str, bytes]:
        files = dict(honest(*args))
        name = "adapter_config.json"
        files[name] = files[name].replace(b'"lora_alpha": 8.0', b'"lora_alpha": 16.0')
        return files

    monkeypatch.setattr(save, "side_files", twice)
    outcome = run("save_reload", context)
    assert "the reopened adapter gives other logits" in outcome.what
    assert "plain peft gives other logits" in outcome.what


def test_row_paths_fails_when_all_rows_take_one_path(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "use_path", lambda *args: contextlib.nullcontext())
    what = run("row_paths", context).what
    assert "rows on the text path get other logits" in what
    assert "rows on the multimodal path" not in what


def test_row_paths_fails_when_rows_are_put_back_in_another_order(
    context: VerificationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_scatter", lambda places, values: torch.cat(values))
    assert run("row_paths", context).state == "failed"


def test_a_model_that_can_not_run_fails_with_its_reason(context: VerificationContext) -> None:
    copied_block(context).modules_to_save[ADAPTER].forward = lambda *args: None
    outcomes = list(run_checks(context, checks=[CHECKS["blocks_executed"]]))
    assert outcomes[0].state == "failed"
    assert "TypeError" in outcomes[0].what


# -- files ----------------------------------------------------------------------------------------


def code_of(folder: Path, **options: Any) -> str:
    """The code with which opening a folder is refused."""
    with pytest.raises(SurgeryError) as caught:
        load_adapter(folder, **options)
    return caught.value.diagnostics[0].code


def test_weights_that_are_cut_short_are_refused_before_peft(base: Path, tmp_path: Path) -> None:
    out = make_adapter(base, tmp_path / "out", "lora", "rank=4")
    weights = out / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    assert code_of(out) == "M204"
    weights.unlink()
    assert code_of(out) == "M201"


@pytest.mark.parametrize("sabotage", ["missing", "extra", "shape"])
def test_other_tensors_than_the_plans_are_refused(
    base: Path, tmp_path: Path, sabotage: str
) -> None:
    from safetensors.torch import load_file, save_file

    out = make_adapter(base, tmp_path / "out", "lora", "rank=4")
    tensors = load_file(out / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    if sabotage == "missing":
        del tensors[first]
    elif sabotage == "extra":
        tensors["base_model.model.model.norm.weight"] = torch.zeros(32)
    else:
        tensors[first] = tensors[first].T.contiguous()
    save_file(tensors, out / "adapter_model.safetensors")
    assert code_of(out) == "A402"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert code_of(out, model=model) == "A402"


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", "qwen2", intermediate_size=96)
    with pytest.raises(SurgeryError) as caught:
        verify_adapter(adapter, base=str(other))
    assert caught.value.diagnostics[0].code == "A401"
