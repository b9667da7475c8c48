"""Apply a plan to a model in memory. The only module that changes a model."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.adapter.depth_in_memory import change_depth
from surgery.adapter.save import save_with_plan
from surgery.adapter.side_files import adapter_config
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.loading import load_base
from surgery.model.quiet import quiet
from surgery.model.source import find_model
from surgery.model.structure.inspector import inspect_model
from surgery.operations.edits import PEFT_PREFIX, AddLearner, Edit, RoutingRule, SwapBlock, SwapPart
from surgery.operations.initial_values import initial_value
from surgery.paths.switching import make_switchable
from surgery.plan.depth.changes import new_names
from surgery.plan.planner import Plan
from surgery.storage.file_names import ADAPTER

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@quiet()
def apply_plan(
    plan: Plan, model: "PreTrainedModel | None" = None, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """Apply a plan to a model and return it; both paths still equal the base.

    Args:
        plan: Plan of this model.
        model: Base, changed in place; of any dtype and on any device. LoRA is fp32, copies have the
            base's dtype. Loaded from disk unless given.
        trust_remote_code: Whether a base that is loaded may run its own Python code; False by
            default.

    Returns:
        A PEFT model; or `model` itself where the base trains in place; or a new model over the same
        tensors where the depth changes. Exactly what the plan trains requires gradients.

    Raises:
        SurgeryError: A403, if the plan was made for another architecture; M for a base that
            can't be loaded.
        ValueError: Without `model`, for a plan of a model that is not on disk.
    """
    model = model if model is not None else _loaded(plan, trust_remote_code)
    _refuse_other_anatomy(plan, model)
    if plan.is_plain:
        return _with_gradients(plan, change_depth(plan, model) if plan.changes_depth else model)
    from peft import get_peft_model

    _add_parts(plan, model)
    peft_model: Any = get_peft_model(model, _lora_config(plan, inference_mode=False))
    _start(plan, peft_model)
    return _finish(plan, peft_model, trainable=True)


def _loaded(plan: Plan, trust_remote_code: bool) -> "PreTrainedModel":
    """The base of a plan, which may have been made without a look at its weights."""
    if plan.files is None or plan.recipe.vision:
        wanting = (
            "the model, since its plan is of one in memory"
            if plan.files is None
            else "a model on disk: write_assembled(recipe, folder), then plan on that folder"
        )
        raise ValueError(f"apply_plan() needs {wanting}")
    recipe = plan.recipe
    files = find_model(recipe.model, revision=recipe.revision, weights=True)
    return load_base(str(files.folder), trust_remote_code=trust_remote_code)


def open_adapter(
    plan: Plan, model: "PreTrainedModel", folder: Path, *, trainable: bool
) -> "PreTrainedModel":
    """Load the weights of an adapter folder onto its base.

    Args:
        plan: The folder's plan.
        model: The base; where the recipe trains in place, the model loaded from the folder.
        folder: Path of the adapter folder.
        trainable: Whether what the plan trains requires gradients.
    """
    if plan.is_plain:
        return _with_gradients(plan, model) if trainable else model
    from peft import PeftModel

    _add_parts(plan, model)
    config = _lora_config(plan, inference_mode=not trainable) if plan.is_routed else None
    peft_model = PeftModel.from_pretrained(
        model, str(folder), is_trainable=trainable, config=config
    )
    return _finish(plan, peft_model, trainable=trainable)


def trainable_parameters(plan: Plan, model: "nn.Module") -> Iterator[tuple[str, "nn.Parameter"]]:
    """Parameters that the plan's last stage trains, by their names in the model.

    Args:
        plan: The applied plan.
        model: The model that `apply_plan` or `load_adapter` returned.
    """
    wanted = _names_in_memory(plan)
    return ((name, p) for name, p in model.named_parameters() if name in wanted)


def _finish(plan: Plan, peft_model: Any, *, trainable: bool) -> "PreTrainedModel":
    # PEFT shortens a long list of full names to suffixes, which could match elsewhere on loading
    peft_model.peft_config[ADAPTER].target_modules = adapter_config(plan)["target_modules"]
    _share_config(plan, peft_model)
    decoder = plan.anatomy.blocks_path.rpartition(".")[0]
    from surgery.paths.routed_model import RoutedModel

    mixin = RoutedModel if plan.is_routed else None
    make_switchable(peft_model, decoder, mixin).has_text_path = plan.has_text_path
    peft_model._save_plan = partial(save_with_plan, plan)
    _register_routing(plan, peft_model, decoder)
    _register_sequence(plan, peft_model, decoder)
    return _with_gradients(plan, peft_model) if trainable else peft_model


def _lora_config(plan: Plan, *, inference_mode: bool) -> Any:
    from peft import LoraConfig

    arguments = {**adapter_config(plan), "inference_mode": inference_mode}
    # PEFT fills in the base's real folder, where it looks for a config when it saves
    ours = ("peft_type", "base_model_name_or_path")
    return LoraConfig(**{k: v for k, v in arguments.items() if k not in ours})


def _add_parts(plan: Plan, model: "nn.Module") -> None:
    from surgery.layers.expert import add_experts
    from surgery.layers.learner import add_learner

    add_experts(model, [path for edit in plan.experts() for path in edit.matrices], ADAPTER)
    for position, edit in enumerate(plan.learners(), start=plan.anatomy.count + 1):
        add_learner(model, edit, ADAPTER, layer=position)


def _register_routing(plan: Plan, peft_model: Any, decoder: str) -> None:
    if not plan.experts():
        return
    from surgery.layers.routing import register_routing

    first, base = plan.experts()[0], peft_model.get_base_model()
    expert, token = base.get_submodule(first.matrices[0]), _image_token(first.rule, base)
    register_routing(base, base.get_submodule(decoder), expert, first.rule, token)


def _register_sequence(plan: Plan, peft_model: Any, decoder: str) -> None:
    if not plan.learners():
        return
    from surgery.layers.sequence_cache import register_sequence

    first, base = plan.learners()[0], peft_model.get_base_model()
    blocks = base.get_submodule(plan.anatomy.blocks_path)
    learner = base.get_submodule(first.path).learner
    token = _image_token(first.rule, base)
    register_sequence(base, base.get_submodule(decoder), blocks, learner, first.rule, token)


def _image_token(rule: RoutingRule, base: Any) -> int | None:
    known = (getattr(base.config, name, None) for name in ("image_token_id", "image_token_index"))
    named = (rule.image_token_id, *known)
    return next((token for token in named if token is not None), None)


def _with_gradients(plan: Plan, model: "PreTrainedModel") -> "PreTrainedModel":
    model.requires_grad_(False)
    for _, parameter in trainable_parameters(plan, model):
        parameter.requires_grad_(True)
    return model


def _names_in_memory(plan: Plan) -> set[str]:
    if plan.changes_depth:
        return set(_trained_in_new_blocks(plan))
    prefix = "" if plan.is_plain else PEFT_PREFIX
    names = {f"{prefix}{name}" for name in plan.trains.base}
    for edit in plan.edits:
        chosen = (t.name for t in edit.tensors if (edit.operation, t.name) in plan.trains.added)
        names |= {name_in_memory(edit, name) for name in chosen}
    return names


def _trained_in_new_blocks(plan: Plan) -> Iterator[str]:
    trained, path = plan.trains, plan.anatomy.blocks_path
    yield from (name for name in trained.base if not name.startswith(f"{path}."))
    for slot, source, own in new_names(plan.depth, path):
        for tensor in plan.anatomy.block(slot.source).tensors:
            name = f"{source}{tensor.name}"
            added = slot.insert and (slot.insert.operation, name) in trained.added
            if added or (slot.insert is None and name in trained.base):
                yield f"{own}{tensor.name}"


def name_in_memory(edit: Edit, name: str) -> str:
    """PEFT's name in memory of a tensor of an adapter file.

    Args:
        edit: The edit that adds the tensor.
        name: Name as in `AddedTensor`, without `PEFT_PREFIX`.
    """
    if isinstance(edit, SwapBlock | SwapPart):
        inner = name.removeprefix(f"{edit.path}.")
        return f"{PEFT_PREFIX}{edit.path}.modules_to_save.{ADAPTER}.{inner}"
    if isinstance(edit, AddLearner):
        inner = name.removeprefix(f"{edit.path}.learner.")
        return f"{PEFT_PREFIX}{edit.path}.learner.learner.{ADAPTER}.{inner}"
    stem, dot, last = name.rpartition(".")
    if last == "lora_magnitude_vector":
        return f"{PEFT_PREFIX}{name}.{ADAPTER}.weight"
    return f"{PEFT_PREFIX}{stem}.{ADAPTER}{dot}{last}"


def _start(plan: Plan, peft_model: Any) -> None:
    """Set the values of all randomly initialized tensors; copies and zeros are already set."""
    import torch

    named = dict(peft_model.named_parameters())
    for edit in plan.edits:
        for tensor in edit.tensors:
            if tensor.start in ("kaiming", "normal"):
                start = torch.from_numpy(initial_value(plan.recipe.seed, tensor))
                with torch.no_grad():
                    named[name_in_memory(edit, tensor.name)].copy_(start)


def _share_config(plan: Plan, peft_model: Any) -> None:
    """Give each copy the model's own config object, which PEFT's deepcopy has duplicated.

    Otherwise a later `set_attn_implementation` would not reach the copies.
    """
    base = peft_model.get_base_model()
    for edit in (*plan.swaps(), *plan.part_swaps()):
        wrapper = base.get_submodule(edit.path)
        copy = wrapper.modules_to_save[ADAPTER]
        pairs = zip(wrapper.original_module.modules(), copy.modules(), strict=True)
        for original, copied in pairs:
            if "config" in vars(original):
                copied.config = original.config


def _refuse_other_anatomy(plan: Plan, model: "PreTrainedModel") -> None:
    found = inspect_model(model, plan.anatomy.source)
    if plan.anatomy.quantization and found.quantization:
        return  # packed weights have other sizes in memory, by method and version
    if found.sizes != plan.anatomy.sizes:
        differ = sorted(found.sizes.items() ^ plan.anatomy.sizes.items())
        raise SurgeryError(diagnostic("A403", source=plan.anatomy.source, name=differ[0][0]))
