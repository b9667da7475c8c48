"""What a proof says about one graph in one scheme."""

from typing import Final

from pydantic import BaseModel, ConfigDict

from surgery.npu.qualcomm.agreement import Agreement
from surgery.npu.qualcomm.workers.task import Refused

SCHEMES: Final = ("fp16", "w8a16", "w4a16")


class Verdict(BaseModel):
    """One graph, one chip, one scheme.

    Args:
        scheme: how it was quantized.
        toolchain: which compiler says so.
        accepted: it compiles strictly, for exactly this chip.
        refused: nodes that it won't take.
        error: its own words where it, or the emulator, failed.
        agreement: of each output with what it should be; in a quantized scheme that is the
            quantized graph on the CPU.
        against_float: of each output with the float graph; what quantizing costs is in it.
        context_bytes: size of the compiled binary.
        seconds: by step: `quantise`, `compile`, `run`.
        peak_bytes: most memory that the compiler's process took.
        late: a step took longer than it may, so that nothing is decided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    scheme: str
    toolchain: str
    accepted: bool = False
    refused: tuple[Refused, ...] = ()
    error: str = ""
    agreement: dict[str, Agreement] = {}
    against_float: dict[str, Agreement] = {}
    context_bytes: int = 0
    seconds: dict[str, float] = {}
    peak_bytes: int = 0
    late: bool = False

    @property
    def passed(self) -> bool:
        """Whether it compiles, runs, and every output agrees."""
        agrees = bool(self.agreement) and all(a.is_enough for a in self.agreement.values())
        return self.accepted and not self.error and agrees

    @property
    def works(self) -> bool:
        """Whether it compiles, runs, and no output is further off than rounding may bring it."""
        agrees = bool(self.agreement) and all(a.is_near for a in self.agreement.values())
        return self.accepted and not self.error and agrees

    @property
    def is_inconclusive(self) -> bool:
        """Whether it ran on inputs of which no output has anything to compare."""
        return bool(self.agreement) and all(a.is_inconclusive for a in self.agreement.values())

    @property
    def cosine(self) -> float:
        """The least of all outputs; 0 where nothing ran."""
        return min((found.cosine for found in self.agreement.values()), default=0.0)
