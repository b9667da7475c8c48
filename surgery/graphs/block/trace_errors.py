"""Why a block has no graph: the error of torch.export, what it keeps, or what isn't on disk."""

import re
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.graphs.block.forms import BlockForm, Shape
from surgery.plan.planner import Plan

_WRAPPED: Final = ("TorchExportError", "ConversionError", "GraphConstructionError")
"""torch.onnx's errors around the one that tells."""
_BY_DATA: Final = ("DataDependent", "data-dependent", "nonzero", "grouped_mm", "unbacked", "u0")
"""In the reasons of a block whose shapes depend on its values, as where tokens are routed."""


def reason_of(error: BaseException) -> str:
    """Return the innermost reason of an error in one line, at most 300 characters."""
    while error.__cause__ is not None and type(error).__name__ in _WRAPPED:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = re.sub(r"\x1b\[[0-9;]*m", "", lines[0]) if lines else "no reason given"
    return f"{type(error).__name__}: {first}"[:300]


def not_static(form: BlockForm, shape: Shape, why: str) -> Diagnostic:
    """A block that doesn't become a static graph."""
    return diagnostic(
        "X110",
        name=form.name,
        module_path=form.module_path,
        step=_step(shape),
        why=why,
        static_form=_static_form(form, why),
        key=form.key,
    )


def depends_on_data(why: str) -> bool:
    """Whether a block has no graph because its shapes depend on its values, by torch's reason."""
    return any(marker in why for marker in _BY_DATA)


def _static_form(form: BlockForm, why: str) -> str:
    """The remedy for what the reason names; of others only that a block must have one graph."""
    if "expert" in form.name:
        return "use `form: blend`, or `form: segments` with `runs`, both static; or `duplicate`"
    if depends_on_data(why):
        return "use `duplicate` or `lora` on a dense base: routing by data has no static shapes"
    if "complex" in why.lower():
        return "use a base whose rotary embedding is of real numbers: ONNX has no complex ones"
    return "use a base whose blocks torch.export and ONNX take, such as Qwen2.5 or Llama 3.2"


def no_step(form: BlockForm, shape: Shape, why: str) -> Diagnostic:
    """A block that can't be run alone, with keys and values in and out."""
    if not form.blocks:
        return diagnostic(
            "X111.image", name=form.name, module_path=form.module_path, why=why, key="model"
        )
    return diagnostic(
        "X111.cache",
        name=form.name,
        module_path=form.module_path,
        step=_step(shape),
        why=why,
        key="model",
    )


def no_parts(plan: Plan, why: str) -> SurgeryError:
    """A model that is no chain of embeddings, blocks and head."""
    return SurgeryError(
        diagnostic(
            "A612.decoder", source=plan.anatomy.source, class_name=plan.anatomy.class_name, why=why
        )
    )


def no_weights(name: str, why: str) -> Diagnostic:
    """Weights that were asked for and aren't there."""
    return diagnostic("X112", name=name, why=why, key="model")


def _step(shape: Shape) -> str:
    tokens = "1 token" if shape.tokens == 1 else f"{shape.tokens} tokens"
    return f"{shape.phase}, {tokens} after {shape.window}"
