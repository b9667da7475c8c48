"""Verify that an adapter does what its recipe says: every check in `checks/`, on the model.

A check is one file in that folder with one subclass of `Check`; nothing else lists it.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch

from surgery.diagnostics.diagnostic import EXIT_ENVIRONMENT, SurgeryError
from surgery.diagnostics.distribution import own_version
from surgery.diagnostics.wording import named_line
from surgery.model.quiet import quiet
from surgery.plan.planner import Plan
from surgery.plan.serialization import FORMAT_VERSION
from surgery.plugins import classes_in
from surgery.verification.context import VerificationContext, checked_plan, open_context

_SMALL: Final = 30_000_000  # parameters

State = Literal["passed", "failed", "skipped"]
Number = bool | int | float | str
Progress = Callable[[str], object]
"""Callback with the name of each step when it begins."""


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Args:
        check: Name of the check.
        state: `passed`, `failed`, or `skipped` where the check doesn't apply to this recipe.
        what: One sentence without a full stop.
        measured: Values that the outcome rests on.
        seconds: Duration in seconds.
    """

    check: str
    state: State
    what: str
    measured: Mapping[str, Number] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the check ran and found nothing wrong."""
        return self.state == "passed"


@dataclass(frozen=True)
class Verification:
    """The results of all checks of one adapter.

    Args:
        adapter: Path of its folder.
        model: Its base, as the plan names it.
        recipe: Name of its recipe.
        outcomes: Result of each check, in the order of their names.
    """

    adapter: str
    model: str
    recipe: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(outcome.state != "failed" for outcome in self.outcomes)

    def document(self) -> dict[str, Any]:
        """The JSON document of `surgery verify --format json`."""
        return {
            "format_version": FORMAT_VERSION,
            "surgery": own_version(),
            "adapter": self.adapter,
            "model": self.model,
            "recipe": self.recipe,
            "passed": self.passed,
            "checks": [
                {
                    "name": outcome.check,
                    "state": outcome.state,
                    "what": outcome.what,
                    "measured": dict(outcome.measured),
                    "seconds": round(outcome.seconds, 3),
                }
                for outcome in self.outcomes
            ],
        }


class Check(ABC):
    """A property of every adapter. The docstring of a subclass is its documentation page."""

    needs_paths: ClassVar[bool] = False
    """Whether the check compares the two paths, of which an in-place recipe has one."""

    @property
    def name(self) -> str:
        """Name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def run(self, context: VerificationContext) -> Outcome:
        """Run the check, and return what was found.

        Args:
            context: An adapter on its base; weights, gradients and modes may be changed and are
                restored afterwards. Hooks must be removed.
        """

    def judge(self, failures: Sequence[str], success: str, **measured: Number) -> Outcome:
        """Return the outcome: failed with the failures, or passed with `success`.

        Args:
            failures: Clauses that say what is wrong; empty if nothing is.
            success: A sentence without a full stop.
            measured: Values that the outcome rests on.
        """
        state: State = "failed" if failures else "passed"
        return Outcome(self.name, state, "; ".join(failures) or success, measured)

    def skip(self, why: str) -> Outcome:
        """Return the outcome of a check that doesn't apply."""
        return Outcome(self.name, "skipped", f"not applicable: {why}")


def known_checks() -> list[Check]:
    """Every check, found in the folder `surgery/verification/checks`."""
    return [check() for check in classes_in("surgery.verification.checks", Check)]  # type: ignore[type-abstract]


@quiet()
def verify_adapter(
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Load an adapter onto its base once, and run every check on it.

    Args:
        folder: Path of what `surgery apply` or `save_adapter` wrote, trained or not.
        base: Path or hub id of the base; the one that the plan names by default.
        trust_remote_code: Whether the base may run its own Python code; False by default.
        progress: Callback with the name of each step when it begins.

    Raises:
        SurgeryError: A401 and A402 for a wrong base or folder, M for files that can't be read.
    """
    progress = progress or (lambda step: None)
    progress("load")
    plan = checked_plan(Path(folder), base=base, trust_remote_code=trust_remote_code)
    with _threads_for(plan):
        context = open_context(plan, Path(folder), trust_remote_code=trust_remote_code)
        outcomes = tuple(run_checks(context, progress))
    return Verification(str(folder), plan.anatomy.source, plan.recipe.name, outcomes)


def run_checks(
    context: VerificationContext, progress: Progress = str, checks: Iterable[Check] | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of each check; every tensor of the context is restored after each.

    Args:
        context: An adapter on its base.
        progress: Callback with the name of each check when it begins.
        checks: Which to run; all known checks by default.
    """
    for check in known_checks() if checks is None else checks:
        progress(check.name)
        started = time.perf_counter()
        outcome = _run(check, context)
        context.restore()
        yield replace(outcome, seconds=time.perf_counter() - started)


@contextmanager
def _threads_for(plan: Plan) -> Iterator[None]:
    """Use one thread for a small model: on a busy machine, more mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if plan.base < _SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(check: Check, context: VerificationContext) -> Outcome:
    if check.needs_paths and context.plan.in_place:
        return check.skip("the base itself changes, its text path is the stored original")
    try:
        return check.run(context)
    except Exception as error:  # a model that can't run at all has failed the check too
        if isinstance(error, SurgeryError) and _is_environments(error):
            raise  # a full disk says nothing of the adapter
        return check.judge([f"it ended in {named_line(error)}"], "")


def _is_environments(error: SurgeryError) -> bool:
    """Whether the environment is at fault, and not the adapter, whose codes begin with A4."""
    is_adapters = error.diagnostics[0].code.startswith("A4")
    return error.exit_code == EXIT_ENVIRONMENT and not is_adapters
