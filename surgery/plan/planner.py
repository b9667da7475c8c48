"""Recipe x anatomy: the ordered edits, the trained tensors, exact counts. No weights are loaded."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError, raise_errors
from surgery.diagnostics.text_table import to_html
from surgery.model.anatomy import Anatomy
from surgery.model.reader import read_anatomy
from surgery.model.source import ModelFiles, find_model
from surgery.model.token_ids import ids_without_rows, token_ids
from surgery.operations.edits import (
    AddExpert,
    AddLearner,
    AddLora,
    DropBlock,
    Edit,
    InsertBlock,
    SwapBlock,
    SwapPart,
)
from surgery.plan.conflicts import conflicts, quantized_in_place
from surgery.plan.depth.build_check import read_depth
from surgery.plan.depth.changes import Slot, new_anatomy, new_depth
from surgery.plan.expand_operations import planned_edits
from surgery.plan.part_copies import in_copies, part_copies
from surgery.plan.selection import Matcher, Selection
from surgery.plan.summary import summary_line
from surgery.plan.table import plan_table, plan_title, stage_lines
from surgery.recipe.schema import Recipe
from surgery.storage.inputs import Input
from surgery.vision.assemble import Assembly, assemble_config, prepare_assembly, source_of


@dataclass(frozen=True)
class PlannedStage:
    """The trained tensors of one stage; `name` is empty where the recipe has no stages."""

    name: str
    selection: Selection


@dataclass(frozen=True)
class Plan:
    """The edits of a recipe on one model.

    Args:
        recipe: Recipe after its overrides.
        anatomy: Anatomy of the base.
        edits: Edits in the order in which they are applied.
        stages: Trained tensors of each stage; the last one's counts are the plan's.
        notes: Warnings and notes.
        files: Files of the base; None for a model that is only in memory.
        assembly: Components that the base is still to be assembled from, where the recipe names
            `vision`; else None.
    """

    recipe: Recipe
    anatomy: Anatomy
    edits: tuple[Edit, ...]
    stages: tuple[PlannedStage, ...]
    notes: tuple[Diagnostic, ...] = ()
    files: ModelFiles | None = field(default=None, compare=False)
    assembly: Assembly | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        frozen = self.total - self.trainable
        return (
            f"<Plan {self.recipe.name} on {self.anatomy.source}: {len(self.edits):,} edits, "
            f"+{self.added:,} parameters, {self.trainable:,} trainable, {frozen:,} frozen>"
        )

    def __str__(self) -> str:
        """The table that `surgery plan` prints."""
        lines = (plan_title(self), str(plan_table(self)), *stage_lines(self), summary_line(self))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return to_html(plan_title(self), plan_table(self), *stage_lines(self), summary_line(self))

    def inputs(self) -> Iterator[Input]:
        """The files and folders on this disk that applying it reads."""
        yield from self.recipe.inputs()
        if self.files:
            yield Input(self.files.folder, "the base")
        if self.assembly:
            yield from self.assembly.inputs

    @property
    def trains(self) -> Selection:
        """The trained tensors of the last stage."""
        return self.stages[-1].selection

    @property
    def in_place(self) -> bool:
        """Whether the base itself changes, so that the stored original is the text path."""
        return self.changes_depth or any(stage.selection.base for stage in self.stages)

    @property
    def has_text_path(self) -> bool:
        """Whether the language model itself stays as it is; vision and projector may train."""
        decoder = frozenset(self.anatomy.names_in("decoder"))
        trained = any(stage.selection.base & decoder for stage in self.stages)
        return not (trained or self.changes_depth)

    @property
    def is_plain(self) -> bool:
        """Whether the result is a plain checkpoint instead of an adapter."""
        return self.changes_depth or not self.edits

    @property
    def changes_depth(self) -> bool:
        """Whether blocks are inserted or dropped."""
        return any(isinstance(edit, InsertBlock | DropBlock) for edit in self.edits)

    @cached_property
    def depth(self) -> tuple[Slot, ...]:
        """The blocks in their order of execution; the base's own where no edit changes it."""
        return new_depth(self.edits, self.anatomy.count)

    @cached_property
    def result(self) -> Anatomy:
        """The anatomy of the plain checkpoint with the new depth; else the base's own."""
        return new_anatomy(self.anatomy, self.depth) if self.changes_depth else self.anatomy

    @property
    def is_routed(self) -> bool:
        """Whether parts of the model depend on which tokens are image tokens."""
        return bool(self.experts() or self.learners())

    @property
    def base(self) -> int:
        """Parameters of the base, shared ones counted once."""
        return self.anatomy.parameters

    @property
    def added(self) -> int:
        """Parameters that the edits add."""
        return sum(edit.parameters for edit in self.edits)

    @property
    def removed(self) -> int:
        """Parameters of the dropped blocks."""
        return sum(edit.removed for edit in self.edits if isinstance(edit, DropBlock))

    @property
    def total(self) -> int:
        """Parameters of the resulting model."""
        return self.base + self.added - self.removed

    @property
    def trainable(self) -> int:
        """Parameters that train in the last stage."""
        return self.trainable_in(self.stages[-1])

    def trainable_in(self, stage: PlannedStage) -> int:
        """Parameters that train in a stage."""
        base = sum(self.anatomy.sizes[name] for name in stage.selection.base)
        return base + sum(self.trainable_of(edit, stage) for edit in self.edits)

    def trainable_of(self, edit: Edit, stage: PlannedStage | None = None) -> int:
        """Parameters of one edit that train in a stage; in the last by default."""
        added = (stage or self.stages[-1]).selection.added
        return sum(t.size for t in edit.tensors if (edit.operation, t.name) in added)

    @cached_property
    def trained_in(self) -> Mapping[int, int]:
        """Parameters of each block of the base that train in place in the last stage."""
        return self.anatomy.by_block(self.trains.base)

    def by_operation(self) -> dict[str, int]:
        """Parameters added by each operation of the recipe, and by each part that is copied."""
        counts = dict.fromkeys(self.recipe.operations, 0)
        for edit in self.edits:
            counts[edit.operation] = counts.get(edit.operation, 0) + edit.parameters
        return counts

    def swaps(self) -> list[SwapBlock]:
        """The copied blocks."""
        return [edit for edit in self.edits if isinstance(edit, SwapBlock)]

    def part_swaps(self) -> list[SwapPart]:
        """The copied vision tower and projector."""
        return [edit for edit in self.edits if isinstance(edit, SwapPart)]

    def experts(self) -> list[AddExpert]:
        """The experts."""
        return [edit for edit in self.edits if isinstance(edit, AddExpert)]

    def learners(self) -> list[AddLearner]:
        """The learners, in the order of their blocks."""
        found = [edit for edit in self.edits if isinstance(edit, AddLearner)]
        return sorted(found, key=lambda edit: edit.block)

    def loras(self) -> list[AddLora]:
        """The LoRA pairs."""
        return [edit for edit in self.edits if isinstance(edit, AddLora)]


def plan_recipe(
    recipe: Recipe | str | os.PathLike[str],
    *,
    weights: bool = False,
    trust_remote_code: bool = False,
    assembled: str | os.PathLike[str] | None = None,
    **overrides: object,
) -> Plan:
    """Find the model that a recipe names, read its anatomy and plan the recipe on it.

    Args:
        recipe: Name of a packaged recipe, path of a `.yaml` file, or a Recipe; one that names
            `vision` is planned on the model that it assembles.
        weights: Whether the weights are required too, as by `apply`; False by default.
        trust_remote_code: Whether the model may run its own Python code; False by default.
        assembled: Folder of the assembled model, once it is written.
        overrides: Overrides of a recipe by its name or path, such as `rank=16`; keys with dots,
            or with the name of an option above, are given to `load_recipe` as a mapping.

    Raises:
        SurgeryError: R for the recipe, M for the model, P for the plan.
        TypeError: For overrides of a Recipe, which is composed already.
    """
    recipe = _composed(recipe, overrides)
    try:
        assembly = prepare_assembly(recipe) if recipe.vision and weights and not assembled else None
        folder = Path(assembled) if assembled else None
        files = _files(recipe, weights=weights, assembled=folder)
        anatomy = read_anatomy(files, trust_remote_code=trust_remote_code)
        anatomy = assembly.as_written(anatomy) if assembly else anatomy
    except SurgeryError as error:
        raise SurgeryError(recipe.locate(error.diagnostics)) from error
    plan = replace(make_plan(recipe, anatomy), files=files, assembly=assembly)
    plan = replace(plan, notes=(*plan.notes, *recipe.locate(_tokens_without_rows(plan, files))))
    if plan.changes_depth:
        _refuse_impossible_depth(plan, files, trust_remote_code)
    return plan


def _composed(recipe: Recipe | str | os.PathLike[str], overrides: Mapping[str, object]) -> Recipe:
    if not isinstance(recipe, Recipe):
        from surgery.recipe.loading import load_recipe

        return load_recipe(recipe, overrides)
    if overrides:
        raise TypeError(
            f"plan_recipe() got the overrides {', '.join(overrides)} and a composed Recipe: "
            "give them to load_recipe(), or the recipe by its name or path"
        )
    return recipe


def _tokens_without_rows(plan: Plan, files: ModelFiles) -> Iterator[Diagnostic]:
    embeddings = plan.anatomy.names_in("embeddings")[:1]
    shapes = {tensor.name: tensor.shape for tensor in plan.anatomy.outside}
    for rows in (shapes[name][0] for name in embeddings if name in shapes):
        ids = token_ids(files.folder)
        if ids > rows:
            yield ids_without_rows(files.source, ids, rows, "warning")


def _files(recipe: Recipe, *, weights: bool, assembled: Path | None) -> ModelFiles:
    if recipe.vision and not assembled:
        return assemble_config(recipe)
    if assembled:
        files = ModelFiles(source_of(recipe), assembled)
    else:
        files = find_model(recipe.model, revision=recipe.revision, weights=weights)
    if weights:
        files.checkpoint()
    return files


def _refuse_impossible_depth(plan: Plan, files: ModelFiles, trust_remote_code: bool) -> None:
    """Build the deeper model without weights, once for each config and depth."""
    edit = next(e for e in plan.edits if isinstance(e, InsertBlock | DropBlock))
    try:
        read_depth(files, plan.anatomy, plan.depth, trust_remote_code=trust_remote_code)
    except SurgeryError as error:
        prefix = f"operations.{edit.operation}"
        located = [replace(d, key=f"{prefix}.{d.key}") for d in error.diagnostics]
        raise SurgeryError(plan.recipe.locate(located)) from error


def make_plan(recipe: Recipe, anatomy: Anatomy) -> Plan:
    """Plan a recipe on an anatomy.

    Raises:
        SurgeryError: P201 to P211, all conflicts together.
    """
    found: list[Diagnostic] = []
    edits = tuple(planned_edits(recipe, anatomy, found))
    matcher = Matcher(anatomy, edits, recipe.operations)
    stages = tuple(_stages(recipe, matcher, found))
    copies = part_copies(anatomy, edits, [stage.selection for stage in stages])
    edits += tuple(copies)
    stages = tuple(PlannedStage(stage.name, in_copies(stage.selection, copies)) for stage in stages)
    plan = Plan(recipe, anatomy, edits, stages)
    if not any(diagnostic.severity == "error" for diagnostic in found):
        found += conflicts(edits, any(stage.selection.base for stage in stages))
        found += quantized_in_place(anatomy, (stage.selection.base for stage in stages))
    located = recipe.locate(found)
    raise_errors(located)
    return replace(plan, notes=tuple(located))


def _stages(recipe: Recipe, matcher: Matcher, found: list[Diagnostic]) -> Iterable[PlannedStage]:
    frozen, diagnostics = matcher.select(recipe.freeze, "freeze")
    found += diagnostics
    own: tuple[Sequence[str], str] = (recipe.train, "train")
    wanted = {
        name: own if stage.train is None else (stage.train, f"stages.{name}.train")
        for name, stage in recipe.stages.items()
    } or {"": own}
    for name, (patterns, key) in wanted.items():
        chosen, diagnostics = matcher.select(patterns, key)
        found += diagnostics
        yield PlannedStage(name, chosen - frozen - matcher.dropped)
