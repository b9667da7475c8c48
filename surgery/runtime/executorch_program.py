"""An ExecuTorch program of a decoder, and the runtime that it is run by.

The key-value cache is state of the loaded program: a call gives the position at which its step
begins, and what comes after that is overwritten. Source: `transformers.integrations.executorch`.
"""

import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line

if TYPE_CHECKING:
    import torch

EXTRA: Final = "executorch"
_RUNTIME: Final = "executorch.runtime"


@dataclass(frozen=True)
class Program:
    """A program on disk; it is loaded when it is first run.

    Args:
        file: of the name `.pte`.
    """

    file: Path

    @cached_property
    def _method(self) -> Any:
        runtime = executorch_module(_RUNTIME).Runtime.get()
        return runtime.load_program(self.file).load_method("forward")

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the logits of the longest step: (1, tokens, words).

        Raises:
            RuntimeError: where this machine's runtime can't load the program.
        """
        return tuple(self._method.metadata.output_tensor_meta(0).sizes())

    def logits(self, ids: list[int], position: int) -> "torch.Tensor":
        """Read tokens into the cache and return what may come after each of them.

        Args:
            ids: tokens of one step.
            position: of the first of them; the cache holds those before it.

        Returns:
            (tokens, words), fp32; the next step writes over it.
        """
        import torch

        positions = torch.arange(position, position + len(ids))
        found: torch.Tensor = self._method.execute([torch.tensor([ids]), positions])[0][0]
        return found


def require_runtime() -> None:
    """Refuse to go on where nothing runs programs.

    Raises:
        SurgeryError: A621.
    """
    executorch_module(_RUNTIME)


def executorch_module(name: str) -> Any:
    """Import a module of the extra.

    Args:
        name: in full.

    Raises:
        SurgeryError: A621.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: built for another torch
        raise SurgeryError(
            diagnostic(
                "A621",
                reason=f"{error}".partition("\n")[0],
                install_line=install_line("executorch"),
            )
        ) from error
