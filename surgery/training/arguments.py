"""A stage's settings as transformers' TrainingArguments."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.recipe.training_schema import Stage
from surgery.training.distributed import world_size


def training_arguments(stage: Stage, name: str, folder: Path, steps: int, seed: int) -> Any:
    """Return transformers' TrainingArguments of a stage for this process.

    Args:
        stage: Settings of the stage.
        name: Name of the stage, for diagnostics.
        folder: Folder of its checkpoints.
        steps: Number of optimizer steps.
        seed: Seed of dropout.

    Raises:
        SurgeryError: T104, if the batch isn't divisible; T105, for a field of `trainer` that is
            unknown, or set by another key.
    """
    from transformers import TrainingArguments

    own: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": _rows_at_once(stage, name),
        "gradient_accumulation_steps": stage.accumulation,
        "max_steps": steps,
        "learning_rate": stage.rate,
        "lr_scheduler_type": stage.schedule,
        "warmup_steps": stage.warmup,
        "weight_decay": stage.weight_decay,
        "adam_beta1": stage.betas[0],
        "adam_beta2": stage.betas[1],
        "adam_epsilon": stage.eps,
        "max_grad_norm": stage.clip,
        "bf16": stage.precision == "bf16",
        "fp16": stage.precision == "fp16",
        "seed": seed,
        "logging_steps": stage.log_every,
        "save_steps": stage.save_every,
    }
    fixed: dict[str, Any] = {
        "save_strategy": "steps",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
    usual: dict[str, Any] = {
        "logging_first_step": True,
        "save_total_limit": 2,
        "include_num_input_tokens_seen": "all" if stage.packing else "non_padding",
        "use_cpu": not torch.accelerator.is_available(),
        "report_to": ["tensorboard"] if importlib.util.find_spec("tensorboard") else "none",
    }
    _refuse_other_fields(stage, name, {**own, **fixed})
    try:
        return TrainingArguments(**{**usual, **stage.trainer, **own, **fixed})
    except (ValueError, TypeError, ImportError) as error:
        raise SurgeryError(
            diagnostic("T105.values", reason=first_line(error), key=f"stages.{name}.trainer")
        ) from error


def _rows_at_once(stage: Stage, name: str) -> int:
    parts = stage.accumulation * world_size()
    if stage.batch % parts:
        raise SurgeryError(
            diagnostic(
                "T104",
                batch=stage.batch,
                world_size=world_size(),
                accumulation=stage.accumulation,
                multiple=world_size() * stage.accumulation,
                key=f"stages.{name}.batch",
            )
        )
    return stage.batch // parts


def _refuse_other_fields(stage: Stage, name: str, own: dict[str, Any]) -> None:
    from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in stage.trainer:
        key = f"stages.{name}.trainer.{field}"
        if field in own:
            raise SurgeryError(diagnostic("T105.own_key", field=field, key=key))
        if field not in known:
            raise SurgeryError(diagnostic("T105.no_such_field", field=field, key=key))
