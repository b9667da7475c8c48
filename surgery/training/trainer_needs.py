"""What the settings under `trainer` need of this machine, checked before the first step.

A missing package shows only when its part of the Trainer is created, which for a later stage would
be hours after the start; so each part is created once and discarded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import named_line
from surgery.recipe.training_schema import Stage


def refuse_lacking(stage: Stage, name: str, arguments: Any, model: Any) -> None:
    """Refuse settings that are unavailable here.

    Args:
        stage: Settings of the stage.
        name: Name of the stage, for diagnostics.
        arguments: TrainingArguments of the stage.
        model: The trained model, for optimizers that inspect it.

    Raises:
        SurgeryError: T117 for what isn't installed, T118 for a setting that pushes to the hub.
    """
    for field, value in stage.trainer.items():
        if value and (field == "push_to_hub" or field.startswith("hub_")):
            raise SurgeryError(
                diagnostic("T118", field=field, key=f"stages.{name}.trainer.{field}")
            )
    for field, made in _parts(arguments, model).items():
        if field in stage.trainer:
            try:
                made()
            except Exception as error:  # each package that is missing says so in its own way
                raise SurgeryError(
                    diagnostic(
                        "T117",
                        field=field,
                        trainer=stage.trainer[field],
                        reason=named_line(error),
                        key=f"stages.{name}.trainer.{field}",
                    )
                ) from error


@contextmanager
def named_start(stage: Stage, name: str, is_under_way: Callable[[], bool]) -> Iterator[None]:
    """Attribute an error before the end of the first step to the settings under `trainer`.

    Args:
        stage: Settings of the stage.
        name: Name of the stage, for diagnostics.
        is_under_way: Function that says whether a step is done.

    Raises:
        SurgeryError: T119.
    """
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:
        if not stage.trainer or is_under_way():
            raise
        raise SurgeryError(
            diagnostic(
                "T119",
                stage=name,
                settings=[f"`trainer.{field}={value}`" for field, value in stage.trainer.items()],
                reason=named_line(error),
                key=f"stages.{name}.trainer",
            )
        ) from error


def _parts(arguments: Any, model: Any) -> dict[str, Callable[[], object]]:
    """Functions that create the part of the Trainer that a field asks for."""
    from transformers import Trainer
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.utils import is_liger_kernel_available

    def optimizer() -> object:
        return Trainer.get_optimizer_cls_and_kwargs(arguments, model)

    def liger() -> None:
        if arguments.use_liger_kernel and not is_liger_kernel_available():
            raise ImportError("`pip install liger-kernel`")

    def reporters() -> object:
        return [made() for made in get_reporting_integration_callbacks(arguments.report_to)]

    return {"report_to": reporters, "optim": optimizer, "use_liger_kernel": liger}
