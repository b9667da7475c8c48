"""Lower a decoder to an ExecuTorch program: traced by transformers, for the CPU by XNNPACK.

Source: `transformers.integrations.executorch`, and
https://docs.pytorch.org/executorch/stable/using-executorch-export.html.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.loading import load_base
from surgery.runtime.executorch_program import Program, executorch_module, require_runtime
from surgery.runtime.manifest import GraphRecord, ValueRecord

_COMPILER: Final = "executorch.exir"
_ROUNDING: Final = 1e-3
"""Of the largest logit; two orders of summing in fp32 stay a hundred times below it."""


@dataclass(frozen=True)
class Lengths:
    """How long things may be.

    Args:
        prefill: tokens of one step, at most.
        context: tokens that the cache has positions for.
    """

    prefill: int
    context: int


def require_compiler() -> None:
    """Refuse to go on where nothing makes programs, or runs them.

    Raises:
        SurgeryError: A621.
    """
    with _without_chatter():
        require_runtime()
        executorch_module(_COMPILER)


def lower(folder: Path, out: Path, lengths: Lengths, *, trust_remote_code: bool) -> GraphRecord:
    """Open a plain checkpoint in fp32 and write it as a program that XNNPACK runs.

    Args:
        folder: the checkpoint.
        out: the file to write.
        lengths: of a step and of the cache.
        trust_remote_code: whether the model may run code of its own.

    Returns:
        What goes in and out; the tokens of a step are the most that it takes.

    Raises:
        SurgeryError: A621 without ExecuTorch, A622 with the library's reason where it can't lower
            this model, or can't run what it made, or that says other than torch does.
    """
    require_compiler()
    with _without_chatter():
        model = load_base(str(folder), trust_remote_code=trust_remote_code).float().eval()
        with _as_diagnostic(model):
            program = _lowered(model, lengths)
        with out.open("wb") as file:
            program.write_to_file(file)
        with _as_diagnostic(model):
            loaded = Program(out)
            _compare(loaded, model, lengths)
    return _record(out.name, lengths, loaded.output)


def _lowered(model: Any, lengths: Lengths) -> Any:
    """Trace a model with its cache in it, and lower it."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    model.set_experts_implementation("batched_mm")  # where it has any: nothing else has a kernel
    model.generation_config.use_cache = True
    model.generation_config.cache_implementation = "static"
    traced = TorchExportableModuleForDecoderOnlyLM(model, 1, lengths.context)
    ids = torch.zeros(1, lengths.prefill, dtype=torch.long)
    with torch.no_grad():
        exported = traced.export(ids, dynamic_shapes=_shapes(lengths.prefill))
    lowered = to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackPartitioner()],
        # As ExecuTorch exports its own Llama: with orders, a step of one token may fail when run.
        compile_config=EdgeCompileConfig(_skip_dim_order=True),
        constant_methods=_runner_metadata(model, lengths),
    )
    return lowered.to_executorch()


def _runner_metadata(model: Any, lengths: Lengths) -> dict[str, Any]:
    """What ExecuTorch's own runner of language models asks a program for."""
    end = model.generation_config.eos_token_id
    ends = [end] if isinstance(end, int) else list(end or ())
    return {
        "get_max_seq_len": lengths.prefill,
        "get_max_context_len": lengths.context,
        "enable_dynamic_shape": lengths.prefill > 1,
        "use_kv_cache": True,
        **({"get_eos_ids": ends} if ends else {}),
    }


def _shapes(prefill: int) -> dict[str, Any] | None:
    """A step has any number of tokens up to `prefill`."""
    import torch

    if prefill == 1:
        return None
    tokens = torch.export.Dim("tokens", min=1, max=prefill)
    return {"input_ids": {1: tokens}, "cache_position": {0: tokens}}


def _compare(program: Program, model: Any, lengths: Lengths) -> None:
    """Run the longest step, and one of one token after it, and compare with torch.

    Raises:
        ValueError: where they differ by more than rounding.
    """
    import torch

    vocabulary = program.output[-1]
    ids = [index % vocabulary for index in range(min(lengths.prefill + 1, lengths.context))]
    step = lengths.prefill
    found = [program.logits(ids[at : at + step], at).clone() for at in range(0, len(ids), step)]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    difference = float((torch.cat(found) - expected).abs().max() / expected.abs().max())
    if not difference < _ROUNDING:
        raise ValueError(f"its program is {difference:.1e} of the largest logit away from torch")


def _record(name: str, lengths: Lengths, output: tuple[int, ...]) -> GraphRecord:
    ids = ValueRecord(name="input_ids", dtype="int64", shape=(1, lengths.prefill), source="ids")
    positions = ValueRecord(
        name="cache_position", dtype="int64", shape=(lengths.prefill,), source="positions"
    )
    return GraphRecord(
        phase="both",
        tokens=lengths.prefill,
        window=lengths.context,
        inputs=(ids, positions),
        outputs=(ValueRecord(name="logits", dtype="float32", shape=output),),
        weights=name,
    )


@contextmanager
def _as_diagnostic(model: Any) -> Iterator[None]:
    """Say in one sentence what a library says in many; what the disk says passes.

    Raises:
        SurgeryError: A622.
    """
    try:
        yield
    except (OSError, MemoryError, SurgeryError):
        raise
    except Exception as error:  # there are as many as there are passes of the compiler
        raise SurgeryError(_not_lowered(type(model).__name__, error)) from error


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence what compilers log and warn of on their way; all as before afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _not_lowered(name: str, error: Exception) -> Diagnostic:
    reason = f"{error}".strip().partition("\n")[0]
    return diagnostic(
        "A622.lowering",
        name=name,
        reason=f"{type(error).__name__}: {reason}" if reason else type(error).__name__,
    )
