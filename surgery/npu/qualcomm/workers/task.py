"""What is asked of the compiler, and what it answers: plain data that two processes share."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Data):
    """One graph to compile, and to run where there is something to run it on.

    Args:
        model: the ONNX file.
        folder: an empty one of its own, for all that the compiler writes.
        soc: number by which the compiler knows the chip, such as 69.
        arch: version of the NPU's instruction set, such as 79.
        fp16: whether the NPU may compute in fp16 what is not quantized.
        name: of the compiled graph.
    """

    model: Path
    folder: Path
    soc: int
    arch: int
    fp16: bool = True
    name: str = "context"

    @property
    def request(self) -> Path:
        """The task itself, for the process that does it."""
        return self.folder / "task.json"

    @property
    def feeds(self) -> Path:
        """Inputs by name; the graph is run where this file is."""
        return self.folder / "feeds.npz"

    @property
    def outputs(self) -> Path:
        """What the emulator computed, by name."""
        return self.folder / "outputs.npz"

    @property
    def context(self) -> Path:
        """The compiled graph: an ONNX file of one node, and its binary next to it."""
        return self.folder / f"{self.name}.onnx"

    @property
    def log(self) -> Path:
        """What the compiler printed."""
        return self.folder / "log.txt"

    @property
    def compiled(self) -> Path:
        """A `Compiled`, written before the graph is run, since that may end the process."""
        return self.folder / "compiled.json"

    @property
    def answer(self) -> Path:
        """A `Compiled`, written last."""
        return self.folder / "answer.json"


class Refused(_Data):
    """A node that the compiler refused.

    Args:
        node: its name in the graph.
        op: its type.
        reason: the compiler's own words.
    """

    node: str
    op: str
    reason: str


class Compiled(_Data):
    """The compiler's answer on one graph.

    Args:
        accepted: the entire graph is one binary for exactly the chip that was asked for.
        refused: nodes that it won't take; may be empty where it failed later.
        error: its own words where it failed.
        operators: of the compiled file; all are `EPContext` where nothing was left out.
        compatibility: what the binary says that it is for, `v2:6:…:ARCH:SOC:…`.
        context_bytes: size of the binary.
        compile_seconds: for that.
        run_error: why the emulator failed, where it did.
        run_seconds: for one run in the emulator.
        peak_bytes: most memory that the process took so far.
        ended: how the process ended before it could answer; empty where it did answer.
    """

    accepted: bool = False
    refused: tuple[Refused, ...] = ()
    error: str = ""
    operators: tuple[str, ...] = ()
    compatibility: str = ""
    context_bytes: int = 0
    compile_seconds: float = 0.0
    run_error: str = ""
    run_seconds: float = 0.0
    peak_bytes: int = 0
    ended: str = ""
