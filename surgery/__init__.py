"""Declarative architecture surgery for language models.

A recipe says what to change in a decoder, a plan says what that means for one model to the byte,
applying it gives an adapter, and verifying proves that both of its paths are what they should be.
The names below are loaded when they are first used, so that `import surgery` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from surgery.adapter.apply import apply_plan, trainable_parameters
    from surgery.adapter.cogvlm_import import load_expert_weights
    from surgery.adapter.folder import load_adapter, save_adapter, write_adapter
    from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
    from surgery.evaluation.evaluate import evaluate_adapter
    from surgery.export.export import export_adapter
    from surgery.lint.rule_runner import lint_plan
    from surgery.model.reader import read_anatomy
    from surgery.model.source import find_model
    from surgery.npu.target import load_target
    from surgery.paths.fixed_path import fix_path
    from surgery.paths.switching import multimodal_path, text_path
    from surgery.plan.planner import make_plan, plan_recipe
    from surgery.recipe.loading import load_recipe
    from surgery.runtime.run import run_export
    from surgery.training.train import train_adapter, train_recipe
    from surgery.verification.runner import verify_adapter
    from surgery.vision.assemble import write_assembled

__all__ = [
    "Diagnostic",
    "SurgeryError",
    "apply_plan",
    "evaluate_adapter",
    "export_adapter",
    "find_model",
    "fix_path",
    "lint_plan",
    "load_adapter",
    "load_expert_weights",
    "load_recipe",
    "load_target",
    "make_plan",
    "multimodal_path",
    "plan_recipe",
    "read_anatomy",
    "run_export",
    "save_adapter",
    "text_path",
    "train_adapter",
    "train_recipe",
    "trainable_parameters",
    "verify_adapter",
    "write_adapter",
    "write_assembled",
]

_HOMES: Final = {
    "Diagnostic": "diagnostics.diagnostic",
    "SurgeryError": "diagnostics.diagnostic",
    "apply_plan": "adapter.apply",
    "evaluate_adapter": "evaluation.evaluate",
    "export_adapter": "export.export",
    "find_model": "model.source",
    "fix_path": "paths.fixed_path",
    "load_adapter": "adapter.folder",
    "load_expert_weights": "adapter.cogvlm_import",
    "lint_plan": "lint.rule_runner",
    "load_recipe": "recipe.loading",
    "load_target": "npu.target",
    "make_plan": "plan.planner",
    "multimodal_path": "paths.switching",
    "plan_recipe": "plan.planner",
    "read_anatomy": "model.reader",
    "run_export": "runtime.run",
    "save_adapter": "adapter.folder",
    "text_path": "paths.switching",
    "train_adapter": "training.train",
    "train_recipe": "training.train",
    "trainable_parameters": "adapter.apply",
    "verify_adapter": "verification.runner",
    "write_adapter": "adapter.folder",
    "write_assembled": "vision.assemble",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    return getattr(importlib.import_module(f"surgery.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
