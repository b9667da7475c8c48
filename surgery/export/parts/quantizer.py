"""Make the parts of a quantised export one at a time, out of the same parts in float.

A part is written in float, calibrated, quantised and compiled before the next one is begun, so that
neither memory nor disk ever holds more than one in float. All that is made is kept beside the new
export until that is whole: one that was killed goes on at the part where it was, as long as it is
asked for the same.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import Contents, ExportJob
from surgery.export.calibration import Calibration, Shown
from surgery.export.parts.compile import FloatGraph, compiled
from surgery.npu.qualcomm.aimet import aimet_version
from surgery.npu.qualcomm.model_files import own_digest
from surgery.npu.qualcomm.quantize import Quantiser, Scheme
from surgery.npu.qualcomm.toolchain import toolchain
from surgery.npu.target import Target
from surgery.runtime.cpu_engine import OnCpu
from surgery.runtime.decode_loop import LORA, LORA_FILE, TOKENIZER
from surgery.runtime.manifest import ExportedFile, PartRecord, PathName
from surgery.runtime.prompt_chunk import Features
from surgery.storage.atomic_text import replace_bytes, replace_text
from surgery.storage.disk_errors import io_errors
from surgery.storage.file_names import ADAPTER_WEIGHTS, PLAN_FILE
from surgery.storage.safetensors.stream import hash_file

_FILES: Final = TypeAdapter(tuple[ExportedFile, ...])
_AHEAD: Final = (TOKENIZER, LORA)
"""Parts without graphs, which calibration needs."""
_EYES: Final = "vision"
"""The kind of a part that looks at images, which calibration needs as well."""


@dataclass(frozen=True)
class Workshop:
    """What is asked for.

    Args:
        job: what is exported.
        floats: the same in float.
        schemes: bits of weights and activations by the kind of part; others stay in float.
        target: for which device; its compiler is Qualcomm's.
        quantiser: who finds the scales of weights.
    """

    job: ExportJob
    floats: Contents
    schemes: Mapping[str, Scheme]
    target: Target
    quantiser: Quantiser

    def make(self, work: Path, part: str) -> tuple[ExportedFile, ...]:
        """Make a part that has graphs, unless it is there; those before it come first.

        Args:
            work: the folder that keeps what is made.
            part: its name.

        Returns:
            Its files, which are in `work/made/PART`.

        Raises:
            SurgeryError: A302 to A304 for the disk, A616 where it doesn't compile, A618 where it is
                too large, D for the user's records, X101 to X107 for the compiler and the
                quantiser.
        """
        with io_errors(work):
            calibration = self._begun(work)
            done = work / "made" / f"{part}.json"
            if not done.is_file():
                replace_bytes(done, _FILES.dump_json(self._made(work, part, calibration)))
                _forget(work / "float", part)
                calibration.passed(part)
            return _FILES.validate_json(done.read_bytes())

    def _begun(self, work: Path) -> Calibration:
        """Let the prompts wait before the first part; once, and where that fails nothing stays."""
        asked = work / "asked.json"
        if not asked.is_file() or asked.read_text() != self._asked:
            shutil.rmtree(work, ignore_errors=True)
            try:
                self._begin(work)
            except SurgeryError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            replace_text(asked, self._asked)
        return self._calibration(work)

    def _begin(self, work: Path) -> None:
        floats = work / "float"
        (work / "made").mkdir(parents=True)
        for name in (name for name in _AHEAD if name in self.floats.parts):
            self._float(floats, name)
        calibration = self._calibration(work)
        calibration.begin(self._prompts(floats, calibration), self.job.lengths)

    def _calibration(self, work: Path) -> Calibration:
        return Calibration(work / "waiting", self._paths, self._lora(work / "float"))

    @cached_property
    def _asked(self) -> str:
        """All that what is made depends on."""
        job = self.job
        files = (job.folder / PLAN_FILE, job.folder / ADAPTER_WEIGHTS, job.calibration)
        digests = [hash_file(file) for file in files if file and file.is_file()]
        asked = (job.prefill, job.context, job.base, dict(self.schemes), self.target.chip)
        tools = (str(toolchain()), self.quantiser, aimet_version(), own_digest())
        return json.dumps([*digests, *asked, *tools])

    @property
    def _paths(self) -> dict[PathName, Sequence[str]]:
        """The parts that pieces go through on each path; one path where both are the same."""
        paths = dict(self.floats.paths)
        if paths["text"] == paths["multimodal"]:
            del paths["text"]
        apart = (*_AHEAD, self._eyes)
        return {path: [n for n in names if n not in apart] for path, names in paths.items()}

    @property
    def _eyes(self) -> str | None:
        """The part that sees, if there is one."""
        parts = self.floats.parts
        return next((name for name, part in parts.items() if part.kind == _EYES), None)

    def _lora(self, floats: Path) -> dict[PathName, dict[str, Any]]:
        from safetensors.numpy import load_file

        file = floats / LORA / LORA_FILE
        pairs = load_file(file) if file.is_file() else {}
        return {path: pairs if LORA in names else {} for path, names in self.floats.paths.items()}

    def _prompts(
        self, floats: Path, calibration: Calibration
    ) -> Iterator[tuple[Sequence[int], Features | None]]:
        """Ids of each prompt, and what the eyes make of its images."""
        from surgery.data.vocabulary import load_processor
        from surgery.export.calibration_data import prompts_of

        job, eyes = self.job, self._eyes
        processor = load_processor(floats / TOKENIZER, trust_remote_code=job.trust_remote_code)
        tokenizer = getattr(processor, "tokenizer", processor)
        record = self._float(floats, eyes) if eyes else None
        engine = OnCpu(floats)
        rows = prompts_of(processor if eyes else tokenizer, job.calibration, job.context)
        for number, row in enumerate(rows):
            features = None
            if eyes and record and row.has_images:
                pixels = row.images["pixel_values"]
                features = calibration.see(engine, eyes, record, number, pixels)
            yield row.ids.tolist(), features

    def _float(self, folder: Path, name: str) -> PartRecord:
        """Write a part in float, unless it is there."""
        noted = _record_file(folder, name)
        if not noted.is_file():
            part = self.floats.parts[name]
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
            files = tuple(item.write(folder / name, None) for item in part.items)
            record = PartRecord(
                kind=part.kind, dtype=part.dtype, quantisation="none", bytes=0, files=files
            )
            replace_text(noted, record.model_dump_json())
        found = PartRecord.model_validate_json(noted.read_bytes())
        _clear(folder / name, found)
        return found

    def _made(self, work: Path, name: str, calibration: Calibration) -> tuple[ExportedFile, ...]:
        floats, made = work / "float", work / "made" / name
        shutil.rmtree(made, ignore_errors=True)
        record = self._float(floats, name)
        shown = calibration.through(OnCpu(floats), name, record)
        scheme = self.schemes.get(record.kind)
        if scheme is None:
            _record_file(floats, name).unlink()
            (floats / name).rename(made)
            return record.files
        made.mkdir()
        graphs = (_graph(floats / name, file, shown) for file in record.files if file.graph)
        return tuple(
            file
            for graph in graphs
            for file in compiled(graph, made, scheme, self.target, self.quantiser)
        )


def _graph(folder: Path, file: ExportedFile, shown: Sequence[Shown]) -> FloatGraph:
    assert file.graph is not None
    own = [sample for sample in shown if sample.file == file.name]
    return FloatGraph(folder / file.name, file.graph, own)


def _record_file(floats: Path, part: str) -> Path:
    """What says that a part is there in float, whole."""
    return floats / f"{part}.json"


def _clear(folder: Path, record: PartRecord) -> None:
    """Remove what quantising may have left half written beside a part's own files."""
    own = {file.name for file in record.files}
    for other in [place for place in folder.iterdir() if place.name not in own]:
        shutil.rmtree(other) if other.is_dir() else other.unlink()


def _forget(floats: Path, part: str) -> None:
    _record_file(floats, part).unlink(missing_ok=True)
    shutil.rmtree(floats / part, ignore_errors=True)
