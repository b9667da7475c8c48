"""One model type through every operation, on the path that users take.

A tiny random model is saved; then recipe, plan, adapter from disk to disk, `surgery verify`. What
the plan counts is compared with the loaded model, and what was written with what memory gives.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from support.repeated import difference_from_repeated
from support.shrink import tiny_config
from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_base, save_adapter, write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import PARTS_OF_A_BLOCK, Anatomy
from surgery.model.meta_device import auto_class
from surgery.model.numerics import same_bits
from surgery.model.reader import read_anatomy
from surgery.plan.planner import Plan, make_plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.storage.file_names import ADAPTER_WEIGHTS
from surgery.verification import prompts
from surgery.verification.context import forward_logits, generate_greedily
from surgery.verification.runner import verify_adapter

RECIPES: Final = Path(__file__).parent / "recipes"
OPERATIONS: Final = tuple(file.stem for file in sorted(RECIPES.glob("*.yaml")))
"""One recipe each; adding a file adds an operation."""


@dataclass
class Row:
    """What was found of one model type.

    Args:
        model_type: of transformers.
        class_name: the model's class.
        blocks: where its blocks are; empty where none were found.
        reason: why there are no blocks, or why the plain model doesn't run; empty where it does.
        outcomes: word of an operation to `yes`, or to why not.
        planned: seconds from a config alone to a plan, imports of the model's code among them.
        seconds: it all took.
    """

    model_type: str
    class_name: str = ""
    blocks: str = ""
    reason: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)
    planned: float = 0.0
    seconds: float = 0.0


class FailedError(Exception):
    """Something that must hold doesn't."""


def conform(model_type: str, operations: Iterable[str] = OPERATIONS) -> Row:
    """Build a tiny model of a type and try each operation on it.

    Args:
        model_type: of transformers.
        operations: some of `OPERATIONS`; with none, blocks are only located and a plan made.
    """
    row, started = Row(model_type), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="support-") as folder:
        _locate(row, Path(folder) / "config")
        row.planned = time.perf_counter() - started
        if operations:
            _operate(row, Path(folder) / "model", operations)
    row.seconds = time.perf_counter() - started
    return row


def _locate(row: Row, folder: Path) -> None:
    """Plan from a config alone: the type's default one, or the tiny one where that is broken."""
    for make in (CONFIG_MAPPING[row.model_type], partial(tiny_config, row.model_type)):
        try:
            make().save_pretrained(folder)
            anatomy = read_anatomy(str(folder))
            make_plan(load_recipe(RECIPES / "duplicate.yaml", [f"model={folder}"]), anatomy)
        except SurgeryError as error:
            row.reason = _sentence(error).replace(str(folder), row.model_type)
            if error.diagnostics[0].code != "P216":
                continue
        except Exception as error:
            row.reason = f"transformers can't build it: {_first_line(error)}"
            continue
        row.class_name, row.blocks, row.reason = anatomy.class_name, anatomy.blocks_path, ""
        return


def _operate(row: Row, folder: Path, operations: Iterable[str]) -> None:
    """Try each operation on a tiny model of the type."""
    if row.reason:
        return
    try:
        save_tiny(row.model_type, folder)
        anatomy = read_anatomy(str(folder))
    except SurgeryError as error:
        row.reason = _sentence(error).replace(str(folder), row.model_type)
    except Exception as error:
        row.reason = f"transformers can't build or save it: {_first_line(error)}"
    else:
        row.reason = _does_not_run(folder)
    if not row.reason:
        row.outcomes = {name: _outcome(name, folder, anatomy) for name in operations}


def save_tiny(model_type: str, folder: Path) -> str:
    """Save a random model of a type as transformers does, and return its class."""
    config = tiny_config(model_type)
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).eval()
    model.save_pretrained(folder)
    return type(model).__name__


def _does_not_run(folder: Path) -> str:
    """Why the plain model can't be loaded, called and continued; empty where it can."""
    try:
        model: Any = load_base(str(folder)).eval()
        batch = prompts.make_prompts(folder, model)
        forward_logits(model, batch)
        generate_greedily(model, batch)
        generate_greedily(model, batch, use_cache=False)
    except Exception as error:
        return f"does not run in transformers: {_first_line(error)}"
    return ""


def _outcome(operation: str, folder: Path, anatomy: Anatomy) -> str:
    try:
        plan = _planned(operation, folder, anatomy)
        with tempfile.TemporaryDirectory(prefix="support-") as out:
            _check(plan, Path(out))
    except SurgeryError as error:
        return f"refused: {_sentence(error).replace(str(folder), anatomy.model_type)}"
    except FailedError as error:
        return f"failed: {error}"
    except Exception as error:
        return f"failed: {_first_line(error)}"
    return "yes"


def _planned(operation: str, folder: Path, anatomy: Anatomy) -> Plan:
    overrides = [f"model={folder}", *_FITTED.get(operation, lambda anatomy: [])(anatomy)]
    recipe = RECIPES / f"{operation}.yaml"
    others = (name.format(last=anatomy.count - 1) for name in _OTHERWISE.get(operation, ()))
    for more in ("", *others):
        try:
            composed = load_recipe(recipe, [*overrides, more] if more else overrides)
            return plan_recipe(composed, weights=True)
        except SurgeryError as error:
            if error.diagnostics[0].code != "P218":
                raise
            refused = error
    raise refused


def _every_part(anatomy: Anatomy) -> list[str]:
    """LoRA on each part that takes it; on those that there are, to be refused, if none does."""
    useful = {name for kind in anatomy.kinds for name in kind.adaptable_names()}
    modules = {name for kind in anatomy.kinds for name in kind.module_names()}
    parts = [part for part in PARTS_OF_A_BLOCK if part in (useful or modules)]
    return [f"operations.adapters.modules=[{','.join(parts)}]"] if parts else []


def _with_experts(anatomy: Anatomy) -> list[str]:
    """Experts in the first and last of the blocks that have attention, or an MLP if none has."""
    for part in ("attention", "mlp"):
        blocks = anatomy.blocks_with(part)
        if blocks:
            return [f"operations.experts.blocks=[{blocks[0]},{blocks[-1]}]"]
    return []


_OTHERWISE: Final = {
    "insert": (
        "operations.copies.blocks=[1]",
        "operations.copies={{op: insert, blocks: none, ranges: [[0, 4/4], [0, 4/4]]}}",
    ),
    "drop": ("operations.shorter.blocks=2-{last}",),
}
"""What is tried where no config gives the depth: a block between the first and the last, and whole
periods."""

_FITTED: Final = {"lora": _every_part, "expert": _with_experts}


def _check(plan: Plan, folder: Path) -> None:
    """Write the adapter, and compare what is there with the plan and with memory."""
    write_adapter(plan, folder / "disk")
    failed = [o for o in verify_adapter(folder / "disk").outcomes if o.state == "failed"]
    if failed:
        raise FailedError("; ".join(f"{o.check}: {o.what}" for o in failed))
    _refuse(_other_counts(plan))
    _refuse(_other_order(plan, folder / "disk"))
    if not plan.is_plain:
        _refuse(_other_tensors(plan, folder))


def _refuse(faults: Iterator[str]) -> None:
    found = list(faults)
    if found:
        raise FailedError("; ".join(found))


def _other_counts(plan: Plan) -> Iterator[str]:
    """What the anatomy and the plan count otherwise than the model does."""
    assert plan.files is not None
    model: Any = load_base(str(plan.files.folder))
    base = _count(model.parameters())
    if base != plan.base:
        yield f"the model has {base:,} parameters, and its anatomy {plan.base:,}"
    if plan.is_plain:
        return
    applied: Any = apply_plan(plan, model)
    total = _count(applied.parameters())
    trains = _count(p for p in applied.parameters() if p.requires_grad)
    if total != plan.base + plan.added:
        yield f"{total - base:,} parameters were added, and the plan says {plan.added:,}"
    if trains != plan.trainable:
        yield f"{trains:,} parameters train, and the plan says {plan.trainable:,}"


def _other_order(plan: Plan, folder: Path) -> Iterator[str]:
    """Whether a deeper model computes something else than the base with blocks run again."""
    found = difference_from_repeated(plan, str(folder))
    if found is not None and not found.is_rounding:
        yield f"its logits differ from those of the base with blocks run again by {found}"


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _other_tensors(plan: Plan, folder: Path) -> Iterator[str]:
    """What was written from disk to disk otherwise than from memory."""
    assert plan.files is not None
    applied = apply_plan(plan, load_base(str(plan.files.folder)))
    save_adapter(plan, applied, folder / "memory")
    written, saved = (load_file(folder / way / ADAPTER_WEIGHTS) for way in ("disk", "memory"))
    differ = written.keys() ^ saved.keys()
    differ |= {n for n in written.keys() & saved.keys() if not same_bits(written[n], saved[n])}
    if differ:
        yield f"{len(differ)} tensors differ between disk and memory, {min(differ)} first"


def _sentence(error: SurgeryError) -> str:
    first = error.diagnostics[0]
    return (
        f"{first.what}: {first.why} ({first.code})" if first.why else f"{first.what} ({first.code})"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]
