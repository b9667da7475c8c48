"""The Hugging Face Trainer for one stage: rates by part, paths by row, checkpoints of what trains.

Only what a stage needs differently is overridden; steps, accumulation, logging, schedules, resuming
and accelerate are the Trainer's own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from surgery.storage.atomic_text import replaced
from surgery.training.distributed import (
    distribute_like,
    full_tensor,
    is_sharded,
    load_optimizer_state,
    optimizer_state,
)
from surgery.training.learning_rates import parameter_groups
from surgery.training.run_folder import COMPLETE, TRAINED


class StageTrainer(Trainer):  # type: ignore[misc]
    """Trains one stage.

    Args:
        rates: Peak learning rate of each parameter that trains, by its name in memory.
        kwargs: Arguments of the Trainer.
    """

    def __init__(self, *, rates: Mapping[str, float], **kwargs: Any) -> None:
        self._rates = rates
        super().__init__(**kwargs)
        if is_sharded(self.model):
            # else accelerate would wrap it again; set after init, where the Trainer refuses
            # checkpoints of such a model, which this class can make
            self.is_distributed_loading_by_transformers = True
        self.remove_callback(PrinterCallback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; after an error, TensorBoard's thread is closed so that it doesn't write later."""
        try:
            return super().train(*args, **kwargs)
        except BaseException:
            for callback in self.callback_handler.callbacks:
                writer = getattr(callback, "tb_writer", None)
                if writer is not None:
                    writer.close()
            raise

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer that the arguments name, with a learning rate for each group."""
        optimizer: torch.optim.Optimizer | None = getattr(self, "optimizer", None)
        if optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            named = (model or self.model).named_parameters()
            groups = parameter_groups(named, self._rates, self.args.weight_decay)
            optimizer = self.optimizer = kind(groups, **options)
        return optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the mean loss of the labels; a cache would only cost memory.

        Rows on the text path train nothing. A batch of only these has a loss that depends on no
        parameter, and gives a gradient of zero.
        """
        loss = super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)
        if isinstance(loss, torch.Tensor) and torch.is_grad_enabled() and not loss.requires_grad:
            loss = loss + 0.0 * next(p for p in model.parameters() if p.requires_grad).sum()
        return loss

    def save_trained(self, file: Path) -> None:
        """Write the parameters that train; all processes must call it."""
        trained = {n: full_tensor(p) for n, p in self.model.named_parameters() if n in self._rates}
        if self.args.should_save:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replaced(file) as written:
                save_file({name: t.contiguous().cpu() for name, t in trained.items()}, written)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.save_trained(Path(output_dir or self.args.output_dir) / TRAINED)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # the Trainer would remove older checkpoints before this one is marked as complete
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            Path(self.args.output_dir, name, COMPLETE).touch()
            rotate_checkpoints(self.args.output_dir, limit)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state(self.model, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, "optimizer.pt"))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        named = dict((model or self.model).named_parameters())
        with torch.no_grad():
            for name, tensor in load_file(Path(resume_from_checkpoint) / TRAINED).items():
                named[name].copy_(distribute_like(tensor, named[name]))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load = partial(torch.load, map_location="cpu", weights_only=True)
        load_optimizer_state(self.model, self.optimizer, load(Path(checkpoint, "optimizer.pt")))
        self.lr_scheduler.load_state_dict(load(Path(checkpoint, "scheduler.pt")))

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)


def load_trained(model: Any, file: Path) -> None:
    """Assign the parameters that an earlier stage trained, in the dtype of its file."""
    named = dict(model.named_parameters())
    for name, tensor in load_file(file).items():
        named[name].data = tensor.to(named[name].device)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage; one that a killed process left is ignored."""
    complete = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
