"""Train a recipe or an adapter, stage after stage, with the Hugging Face Trainer.

Each stage begins from the base and the files of the stages before it, whenever they ran, so that
resuming after a kill gives the same result.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, read_plan
from surgery.adapter.save import save_into
from surgery.data.vocabulary import embedding_rows, load_processor, refuse_ids_without_rows
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.quiet import quiet
from surgery.plan.planner import Plan, make_plan, plan_recipe
from surgery.recipe.schema import Recipe
from surgery.storage.disk_errors import io_errors
from surgery.storage.file_names import ASSEMBLED_FOLDER
from surgery.storage.inputs import Input
from surgery.storage.staging import staged_folder
from surgery.training.distributed import shard, this_process, wants_sharding
from surgery.training.log import LOG, LogCallback, TrainingLog, end_losses
from surgery.training.model_card import add_training
from surgery.training.precision import cast_to_fp32, restore_types, stored_types
from surgery.training.run_folder import (
    TRAINED,
    Warn,
    close_work,
    copy_log,
    is_result,
    open_work_folder,
    refuse_other_data,
)
from surgery.training.stage import PreparedStage, StageResult, prepare_stage
from surgery.training.trainer import StageTrainer, last_checkpoint, load_trained

Build = Callable[[], Any]


@quiet()
def train_recipe(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: LogCallback | None = None,
    warn: Warn | None = None,
    callbacks: Sequence[Any] = (),
) -> list[StageResult]:
    """Apply a recipe in memory, train its stages, and save the adapter.

    Args:
        recipe: A recipe with data in its stages.
        out: Path of the adapter folder to make; checkpoints are in `work_folder(out)` meanwhile.
        resume: Whether to resume an interrupted training for the same `out` and recipe; False by
            default.
        overwrite: Whether to replace a folder that `surgery` wrote, and begin again; False by
            default.
        trust_remote_code: Whether the base may run its own Python code; False by default.
        progress: Callback with each line of the log, on the main process.
        warn: Callback with notes before the first step: on data that is not learned from, and where
            there is nothing to resume.
        callbacks: Further callbacks of the Trainer.

    Raises:
        SurgeryError: T for the training, D for its data, and what `apply` raises.
    """
    out = Path(out)
    plan = plan_recipe(recipe, weights=True, trust_remote_code=trust_remote_code)
    with open_work_folder(
        out, recipe, plan.inputs(), resume=resume, overwrite=overwrite, warn=warn
    ) as work:
        plan = _write_assembly(plan, work)
        assert plan.files is not None
        base = plan.files.folder

        def build() -> Any:
            return apply_plan(plan, load_base(str(base), trust_remote_code=trust_remote_code))

        run = _Run(plan, build, base, work, progress, warn, callbacks, trust_remote_code)
        return run.run(out, overwrite=overwrite)


@quiet()
def train_adapter(
    folder: str | os.PathLike[str],
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: LogCallback | None = None,
    warn: Warn | None = None,
    callbacks: Sequence[Any] = (),
) -> list[StageResult]:
    """Continue to train an adapter from its weights.

    Args:
        folder: Path of an adapter folder, which is unchanged.
        recipe: The folder's recipe with other stages.
        out: This and the rest as for `train_recipe`.
        resume: The same.
        overwrite: The same.
        trust_remote_code: The same.
        progress: The same.
        warn: The same.
        callbacks: The same.

    Raises:
        SurgeryError: T109, if the recipe gives other edits than the folder has.
    """
    folder, out = Path(folder), Path(out)
    made, document = read_plan(folder, trust_remote_code=trust_remote_code)
    recipe = recipe.model_copy(update={"name": document["recipe"]["name"]})
    assert made.files is not None
    plan = replace(make_plan(recipe, made.anatomy), files=made.files)
    if plan.edits != made.edits or made.in_place > plan.in_place:
        raise SurgeryError(diagnostic("T109", folder=folder))

    def build() -> Any:
        return load_adapter(folder, trainable=True, trust_remote_code=trust_remote_code)

    inputs = [Input(folder, "the adapter"), *plan.inputs()]
    with open_work_folder(
        out, recipe, inputs, resume=resume, overwrite=overwrite, warn=warn
    ) as work:
        run = _Run(
            plan, build, made.files.folder, work, progress, warn, callbacks, trust_remote_code
        )
        return run.run(out, overwrite=overwrite)


@dataclass(frozen=True)
class _Run:
    """One training: its plan, model and folders."""

    plan: Plan
    build: Build
    base_folder: Path
    work: Path
    progress: LogCallback | None
    warn: Warn | None
    callbacks: Sequence[Any]
    trust_remote_code: bool

    def run(self, out: Path, *, overwrite: bool) -> list[StageResult]:
        _refuse_without_data(self.plan)
        model = self.build()
        types = stored_types(model)
        processor = load_processor(self.base_folder, trust_remote_code=self.trust_remote_code)
        refuse_ids_without_rows(processor, embedding_rows(model), self.base_folder)
        prepared = [
            prepare_stage(self.plan, trained, model, processor, self.work / trained.name)
            for trained in self.plan.stages
        ]
        is_done = is_result(self.work, out)
        if not is_done:
            digests = {p.name: [rows.digest() for rows in p.rows.sources] for p in prepared}
            refuse_other_data(self.work, digests)
        notes = [note for stage in prepared for note in stage.notes]
        if notes and self.warn and this_process().is_main_process:
            self.warn(list(dict.fromkeys(notes)))
        results = []
        for stage in prepared:
            if not (is_done or self._trained(stage.name).exists()):
                model = self._at_stage(stage, model)
                self._train(stage, model)
                model = None
            results.append(stage.result())
        losses = end_losses((out if is_done else self.work) / LOG)
        results = [replace(result, losses=losses.get(result.name, ())) for result in results]
        self._save(out, types, results, overwrite=overwrite)
        return results

    def _at_stage(self, stage: PreparedStage, model: Any) -> Any:
        """The model after the stages before, with gradients for this one."""
        model = model or self.build()
        for name in self.plan.recipe.stages:
            if name == stage.name:
                break
            load_trained(model, self._trained(name))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in stage.rates)
        cast_to_fp32(model, frozen=stage.stage.precision == "fp32" or wants_sharding())
        return model

    def _train(self, stage: PreparedStage, model: Any) -> None:
        if wants_sharding():
            shard(self.plan, model)
        trainer = StageTrainer(
            rates=stage.rates,
            model=model,
            args=stage.arguments,
            train_dataset=stage.rows,
            data_collator=stage.collator,
            callbacks=[TrainingLog(self.work / LOG, stage.name, self.progress), *self.callbacks],
        )
        checkpoint = last_checkpoint(self.work / stage.name)
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        with stage.named_errors(lambda: trainer.state.global_step > done), io_errors(self.work):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            trainer.save_trained(self._trained(stage.name))
        trainer.accelerator.wait_for_everyone()

    def _trained(self, name: str) -> Path:
        return self.work / name / TRAINED

    def _save(
        self, out: Path, types: dict[str, Any], results: Sequence[StageResult], *, overwrite: bool
    ) -> None:
        """Save the adapter with its log, unless that is done, and remove the checkpoints."""
        this_process().wait_for_everyone()  # a late process must still see which stages are done
        if this_process().is_main_process:
            if not is_result(self.work, out):
                model = self.build()
                for name in self.plan.recipe.stages:
                    load_trained(model, self._trained(name))
                restore_types(model, types)
                with staged_folder(out, overwrite=overwrite) as folder:
                    save_into(self.plan, model, folder)
                    add_training(folder, self.plan, results)
                    copy_log(self.work, folder)
            close_work(self.work)
        this_process().wait_for_everyone()


def _write_assembly(plan: Plan, work: Path) -> Plan:
    """The plan; a model that the recipe assembles is written first."""
    if not plan.assembly:
        return plan
    folder = work / ASSEMBLED_FOLDER
    with this_process().main_process_first():
        if not folder.exists():
            plan.assembly.write_folder(folder)
    return plan_recipe(plan.recipe, weights=True, assembled=folder)


def _refuse_without_data(plan: Plan) -> None:
    stages = plan.recipe.stages
    lacking = [name for name, stage in stages.items() if not stage.sources]
    if lacking or not stages:
        raise SurgeryError(plan.recipe.locate([_no_data(plan.recipe.name, lacking)]))


def _no_data(recipe: str, stages: Sequence[str]) -> Diagnostic:
    named = f"stage `{stages[0]}` has" if stages else f"`{recipe}` has"
    key = f"stages.{stages[0]}" if stages else ""
    return diagnostic("T101", named=named, recipe=recipe, key=key)
