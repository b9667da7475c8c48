"""Declarative architecture surgery for language models.

A recipe says what to change in a decoder, a plan says what that means for one model to the byte,
applying it gives an adapter, and verifying proves that both of its paths are what they should be.
The names below are loaded when they are first used, so that `import surgery` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from surgery.adapter import load_adapter, save_adapter, write_adapter
    from surgery.apply import apply_plan, trainable_parameters
    from surgery.assembly import write_assembled
    from surgery.compose import load_recipe
    from surgery.diagnostic import Diagnostic, SurgeryError
    from surgery.evaluate import evaluate_adapter
    from surgery.export import export_adapter
    from surgery.fixed import fix_path
    from surgery.import_experts import load_expert_weights
    from surgery.lint import lint_plan
    from surgery.model import find_model
    from surgery.paths import multimodal_path, text_path
    from surgery.plan import make_plan, plan_recipe
    from surgery.read import read_anatomy
    from surgery.run import run_export
    from surgery.target import load_target
    from surgery.train import train_adapter, train_recipe
    from surgery.verify import verify_adapter

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
    "Diagnostic": "diagnostic",
    "SurgeryError": "diagnostic",
    "apply_plan": "apply",
    "evaluate_adapter": "evaluate",
    "export_adapter": "export",
    "find_model": "model",
    "fix_path": "fixed",
    "load_adapter": "adapter",
    "load_expert_weights": "import_experts",
    "lint_plan": "lint",
    "load_recipe": "compose",
    "load_target": "target",
    "make_plan": "plan",
    "multimodal_path": "paths",
    "plan_recipe": "plan",
    "read_anatomy": "read",
    "run_export": "run",
    "save_adapter": "adapter",
    "text_path": "paths",
    "train_adapter": "train",
    "train_recipe": "train",
    "trainable_parameters": "apply",
    "verify_adapter": "verify",
    "write_adapter": "adapter",
    "write_assembled": "assembly",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    return getattr(importlib.import_module(f"surgery.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
