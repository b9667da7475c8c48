"""The NPU's emulator, which keeps compiled graphs open from one run to the next."""

import pickle
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.toolchain import toolchain
from surgery.npu.qualcomm.workers.process import command_of, ending


class Emulator:
    """A process in which compiled graphs run; use it in a `with`.

    Args:
        soc: number by which the compiler knows the chip.
        arch: version of the NPU's instruction set.

    Raises:
        SurgeryError: X101, X102.
    """

    def __init__(self, soc: int, arch: int) -> None:
        toolchain()
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log.txt")
        arguments = [str(soc), str(arch), self._folder.name]
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                command_of("surgery.npu.qualcomm.workers.emulator", arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def __enter__(self) -> "Emulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, graph: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run a compiled graph.

        Args:
            graph: the file of one node that the compiler wrote, its binary next to it.
            feeds: an array for each of its inputs.

        Returns:
            Its outputs.

        Raises:
            SurgeryError: X104 where it can't be run.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        cause: Exception | None = None
        try:
            pickle.dump((str(graph), dict(feeds)), stdin)
            stdin.flush()
            error, found = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as caught:
            error, cause = f"the emulator {ending(self._process.wait(), self._log)}", caught
        if error:
            raise SurgeryError(
                diagnostic("X104.emulator", part=graph.parent.name, graph=graph.name, reason=error)
            ) from cause
        outputs: dict[str, Any] = found
        return outputs

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()
