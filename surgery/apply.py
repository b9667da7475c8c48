"""Carry a plan out on a model in memory. The only module that changes a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.dissect import dissect
from surgery.edit import Edit, SwapBlock
from surgery.paths import make_switchable
from surgery.plan import Plan
from surgery.sidefiles import adapter_config
from surgery.start import kaiming_uniform

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ADAPTER: Final = "default"
"""PEFT's name for the one adapter of a model."""


def apply_plan(plan: Plan, model: "PreTrainedModel") -> "PreTrainedModel":
    """Apply a plan to a loaded model and return it, both paths equal to the base so far.

    Args:
        plan: made for this model.
        model: changed in place; of any dtype and on any device. LoRA is fp32 beside it, copies
            have its dtype.

    Returns:
        A PEFT model, or `model` itself where the base trains in place. Exactly what the plan
        trains requires gradients.

    Raises:
        SurgeryError: A403, if the plan was made for a model of another build.
    """
    _refuse_other_anatomy(plan, model)
    if not plan.edits:
        return _with_gradients(plan, model)
    from peft import LoraConfig, get_peft_model

    arguments = {**adapter_config(plan), "inference_mode": False}
    # PEFT fills in the base's real folder, where it looks for a config when it saves
    ours = ("peft_type", "base_model_name_or_path")
    config = LoraConfig(**{k: v for k, v in arguments.items() if k not in ours})
    peft_model: Any = get_peft_model(model, config)
    _start_pairs(plan, peft_model)
    return _finish(plan, peft_model, trainable=True)


def open_adapter(
    plan: Plan, model: "PreTrainedModel", folder: Path, *, trainable: bool
) -> "PreTrainedModel":
    """Put the weights of an adapter folder on its base.

    Args:
        plan: the folder's.
        model: the base; or, where the recipe trains in place, the loaded folder itself.
        folder: the adapter folder.
        trainable: whether what the plan trains requires gradients.
    """
    if not plan.edits:
        return _with_gradients(plan, model) if trainable else model
    from peft import PeftModel

    peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    return _finish(plan, peft_model, trainable=trainable)


def trainable_parameters(plan: Plan, model: "nn.Module") -> Iterator[tuple[str, "nn.Parameter"]]:
    """The parameters that the plan trains in its last stage, under their names in the model.

    Args:
        plan: what was applied.
        model: what `apply_plan` or `load_adapter` returned.
    """
    wanted = _names_in_memory(plan)
    return ((name, p) for name, p in model.named_parameters() if name in wanted)


def _finish(plan: Plan, peft_model: Any, *, trainable: bool) -> "PreTrainedModel":
    # PEFT shortens a long list of full names to suffixes, which could match elsewhere on loading
    peft_model.peft_config[ADAPTER].target_modules = adapter_config(plan)["target_modules"]
    _share_config(plan, peft_model)
    make_switchable(peft_model, plan.anatomy.blocks_path.rpartition(".")[0])
    return _with_gradients(plan, peft_model) if trainable else peft_model


def _with_gradients(plan: Plan, model: "PreTrainedModel") -> "PreTrainedModel":
    model.requires_grad_(False)
    for _, parameter in trainable_parameters(plan, model):
        parameter.requires_grad_(True)
    return model


def _names_in_memory(plan: Plan) -> set[str]:
    names = set(plan.trains.base)
    for edit in plan.edits:
        chosen = (t.name for t in edit.tensors if (edit.operation, t.name) in plan.trains.added)
        names |= {name_in_memory(edit, name) for name in chosen}
    return names


def name_in_memory(edit: Edit, name: str) -> str:
    """Where PEFT keeps a tensor that its adapter file calls `name`.

    Args:
        edit: what adds the tensor.
        name: as in `AddedTensor`, without `PEFT_PREFIX`.
    """
    if isinstance(edit, SwapBlock):
        inner = name.removeprefix(f"{edit.path}.")
        return f"base_model.model.{edit.path}.modules_to_save.{ADAPTER}.{inner}"
    stem, dot, last = name.rpartition(".")
    if last == "lora_magnitude_vector":
        return f"base_model.model.{name}.{ADAPTER}.weight"
    return f"base_model.model.{stem}.{ADAPTER}{dot}{last}"


def _start_pairs(plan: Plan, peft_model: Any) -> None:
    import torch

    base = peft_model.get_base_model()
    for edit in plan.loras():
        first = edit.tensors[0]
        if first.start != "kaiming":
            continue
        rank, inputs = first.shape
        start = kaiming_uniform(plan.recipe.seed, edit.path, (rank, inputs))
        with torch.no_grad():
            base.get_submodule(edit.path).lora_A[ADAPTER].weight.copy_(torch.from_numpy(start))


def _share_config(plan: Plan, peft_model: Any) -> None:
    """Give each copy the model's own config object, which PEFT's deepcopy has doubled.

    Otherwise a later `set_attn_implementation` would not reach the copies.
    """
    base = peft_model.get_base_model()
    for edit in plan.swaps():
        wrapper = base.get_submodule(edit.path)
        copy = wrapper.modules_to_save[ADAPTER]
        pairs = zip(wrapper.original_module.modules(), copy.modules(), strict=True)
        for original, copied in pairs:
            if "config" in vars(original):
                copied.config = original.config


def _refuse_other_anatomy(plan: Plan, model: "PreTrainedModel") -> None:
    found = dissect(model, plan.anatomy.source)
    if plan.anatomy.quantization and found.quantization:
        return  # packed weights have other sizes in memory, by method and version
    if found.sizes != plan.anatomy.sizes:
        differ = sorted(found.sizes.items() ^ plan.anatomy.sizes.items())
        raise SurgeryError(_other_anatomy(plan, differ[0][0]))


def _other_anatomy(plan: Plan, name: str) -> Diagnostic:
    return Diagnostic(
        code="A403",
        what=f"the plan was made for {plan.anatomy.source}, and this model is built otherwise",
        why=f"`{name}` is not the same in both, or only in one of them",
        fix="make the plan for this model: `make_plan(recipe, read_anatomy(model))`",
    )
