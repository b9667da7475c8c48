"""Quantise and compile the graphs of an export one at a time, out of the same export in float.

All that is made is kept beside the new export until that is whole. So an export that was killed
goes on at the graph where it was, as long as it is asked for the same.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from surgery.calibration import DECODED, calibrate, samples_of, sentences
from surgery.cpu_engine import OnCpu
from surgery.decode_loop import LORA, LORA_FILE, TOKENIZER
from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.exporter import Contents, Job
from surgery.manifest import GraphRecord, PartRecord
from surgery.part_limit import refuse_large
from surgery.sidefiles import ADAPTER_WEIGHTS, PLAN_FILE
from surgery.snapdragon.agreement import agreement
from surgery.snapdragon.compiler import compile_graph
from surgery.snapdragon.files import own_digest
from surgery.snapdragon.quantise import Scheme, quantise
from surgery.snapdragon.reference import reference
from surgery.snapdragon.task import Compiled
from surgery.snapdragon.toolchain import toolchain
from surgery.staging import io_errors
from surgery.stream import hash_file
from surgery.target import Chip, Target

REFERENCE: Final = ".qdq.onnx"
"""Ends the name of a quantised graph before it is compiled, which the CPU can run."""
_RECORDS: Final = TypeAdapter(dict[str, PartRecord])


@dataclass(frozen=True)
class Workshop:
    """What is asked for.

    Args:
        job: what is exported.
        floats: the same in float.
        target: for which device; its compiler is Qualcomm's.
        scheme: bits of weights and activations.
    """

    job: Job
    floats: Contents
    target: Target
    scheme: Scheme

    def make(self, work: Path, part: str, graph: str) -> GraphRecord:
        """Quantise a graph, compile it, and say how far it is from float; unless it is there.

        Args:
            work: the folder that keeps what is made.
            part: name of the part.
            graph: name of its graph in float, such as `decode.onnx`.

        Returns:
            The record of the compiled graph, whose files are in `work/made/PART`.

        Raises:
            SurgeryError: A302 to A304 for the disk, A616 where it doesn't compile, A618 where it is
                too large, X101 to X107 for the compiler and the quantiser.
        """
        with io_errors(work):
            records = self._prepared(work)
            done = work / "made" / part / f"{graph}.json"
            if not done.is_file():
                done.parent.mkdir(parents=True, exist_ok=True)
                _write(done, self._made(work, part, graph, records).model_dump_json())
            return GraphRecord.model_validate_json(done.read_bytes())

    def _prepared(self, work: Path) -> dict[str, PartRecord]:
        """Write the float export, and let it run on the built-in sentences; once."""
        asked, done = work / "asked.json", work / "float.json"
        if not asked.is_file() or asked.read_text() != self._asked:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            _write(asked, self._asked)
        if not done.is_file():
            for name in ("float", "samples"):
                shutil.rmtree(work / name, ignore_errors=True)
            records = self._floats(work / "float")
            self._calibrate(work, records)
            _write(done, _RECORDS.dump_json(records).decode())
        return _RECORDS.validate_json(done.read_bytes())

    @cached_property
    def _asked(self) -> str:
        """All that what is made depends on."""
        job = self.job
        files = (job.folder / name for name in (PLAN_FILE, ADAPTER_WEIGHTS))
        digests = [hash_file(file) for file in files if file.is_file()]
        asked = (job.prefill, job.context, job.base, self.scheme, *self._chip)
        return json.dumps([*digests, *asked, str(toolchain()), own_digest()])

    @property
    def _chip(self) -> Chip:
        assert self.target.chip is not None
        return self.target.chip

    def _floats(self, folder: Path) -> dict[str, PartRecord]:
        records = {}
        for name, part in self.floats.parts.items():
            (folder / name).mkdir(parents=True)
            files = tuple(item.write(folder / name, None) for item in part.items)
            records[name] = PartRecord(
                kind=part.kind, dtype=part.dtype, quantisation="none", bytes=0, files=files
            )
        return records

    def _calibrate(self, work: Path, records: Mapping[str, PartRecord]) -> None:
        floats = work / "float"
        prompts = sentences(
            floats / TOKENIZER,
            self.job.context - DECODED,
            trust_remote_code=self.job.trust_remote_code,
        )
        paths = self.floats.paths
        calibrate(OnCpu(floats), records, paths, _lora(work), prompts, work / "samples")

    def _made(
        self, work: Path, part: str, graph: str, records: Mapping[str, PartRecord]
    ) -> GraphRecord:
        model, made = work / "float" / part / graph, work / "made" / part
        own = next(file for file in records[part].files if file.name == graph)
        samples = samples_of(work / "samples", part, own, _lora(work))
        quantised = made / f"{Path(graph).stem}{REFERENCE}"
        quantise(model, quantised, self.scheme, samples)
        _keep_weights_beside(quantised)
        answer = compile_graph(quantised, *self._chip, made / graph, fp16=True)
        if not answer.accepted:
            raise SurgeryError(_refused(part, graph, answer))
        refuse_large(part, answer.context_bytes, self.target)
        found = agreement(reference(quantised, samples[-1]), reference(model, samples[-1]))
        cosine = {name: one.cosine for name, one in found.items()}
        assert own.graph is not None
        return own.graph.model_copy(update={"cosine": cosine, "weights": files_of_graph(graph)[2]})


def files_of_graph(graph: str) -> tuple[str, ...]:
    """Return the files of a compiled graph: quantised graph, its weights, binary, compiled graph.

    Args:
        graph: its name in float, which the compiled one has too.
    """
    stem = Path(graph).stem
    return (f"{stem}{REFERENCE}", f"{stem}{REFERENCE}.data", f"{stem}_qnn.bin", graph)


def _lora(work: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    pairs = work / "float" / LORA / LORA_FILE
    return load_file(pairs) if pairs.is_file() else {}


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    os.replace(partial, file)


def _keep_weights_beside(model: Path) -> None:
    """Let a graph have a file of weights also where the quantiser put them into it."""
    import onnx

    data = f"{model.name}.data"
    if not model.with_name(data).is_file():
        graph = onnx.load(model)
        onnx.save_model(graph, model, save_as_external_data=True, location=data, size_threshold=0)


def _refused(part: str, graph: str, answer: Compiled) -> Diagnostic:
    nodes = [f"`{node.node}` ({node.op}): {node.reason}" for node in answer.refused[:3]]
    return Diagnostic(
        code="A616",
        what=f"`{part}/{graph}` doesn't compile",
        why="; ".join(nodes) or answer.error,
        fix="`surgery lint RECIPE --target snapdragon --prove` says what to change",
    )
