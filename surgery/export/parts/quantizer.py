"""Make the parts of a quantized export one at a time, out of the same parts in float.

A part is written in float, calibrated, quantized and compiled before the next one is begun, so that
neither memory nor disk ever holds more than one in float. All that is made is kept next to the new
export until that is complete: one that was killed goes on at the part where it was, as long as it
is asked for the same.
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
from surgery.export.calibration import Calibration, CalibrationSample
from surgery.export.parts.compile import FloatGraph, compiled
from surgery.npu.qualcomm.aimet import aimet_version
from surgery.npu.qualcomm.model_files import implementation_digest
from surgery.npu.qualcomm.quantize import Quantizer, Scheme
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
_VISION: Final = "vision"
"""The kind of a part that looks at images, which calibration needs as well."""


@dataclass(frozen=True)
class PartQuantizer:
    """What is asked for.

    Args:
        job: what is exported.
        float32: the same in float.
        schemes: bits of weights and activations by the kind of part; others stay in float.
        target: for which device; its compiler is Qualcomm's.
        quantizer: who finds the scales of weights.
    """

    job: ExportJob
    float32: Contents
    schemes: Mapping[str, Scheme]
    target: Target
    quantizer: Quantizer

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
                quantizer.
        """
        with io_errors(work):
            calibration = self._started(work)
            done = work / "made" / f"{part}.json"
            if not done.is_file():
                replace_bytes(done, _FILES.dump_json(self._quantized(work, part, calibration)))
                _forget(work / "float", part)
                calibration.release(part)
            return _FILES.validate_json(done.read_bytes())

    def _started(self, work: Path) -> Calibration:
        """Let the prompts wait before the first part; once, and where that fails nothing stays."""
        request = work / "asked.json"
        if not request.is_file() or request.read_text() != self._request:
            shutil.rmtree(work, ignore_errors=True)
            try:
                self._begin(work)
            except SurgeryError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            replace_text(request, self._request)
        return self._calibration(work)

    def _begin(self, work: Path) -> None:
        float32 = work / "float"
        (work / "made").mkdir(parents=True)
        for name in (name for name in _AHEAD if name in self.float32.parts):
            self._float(float32, name)
        calibration = self._calibration(work)
        calibration.begin(self._prompts(float32, calibration), self.job.lengths)

    def _calibration(self, work: Path) -> Calibration:
        return Calibration(work / "waiting", self._paths, self._lora(work / "float"))

    @cached_property
    def _request(self) -> str:
        """All that what is made depends on."""
        job = self.job
        files = (job.folder / PLAN_FILE, job.folder / ADAPTER_WEIGHTS, job.calibration)
        digests = [hash_file(file) for file in files if file and file.is_file()]
        request = (job.prefill, job.context, job.base, dict(self.schemes), self.target.chip)
        tools = (str(toolchain()), self.quantizer, aimet_version(), implementation_digest())
        return json.dumps([*digests, *request, *tools])

    @property
    def _paths(self) -> dict[PathName, Sequence[str]]:
        """The parts that chunks go through on each path; one path where both are the same."""
        paths = dict(self.float32.paths)
        if paths["text"] == paths["multimodal"]:
            del paths["text"]
        excluded = (*_AHEAD, self._vision)
        return {path: [n for n in names if n not in excluded] for path, names in paths.items()}

    @property
    def _vision(self) -> str | None:
        """The vision part, if there is one."""
        parts = self.float32.parts
        return next((name for name, part in parts.items() if part.kind == _VISION), None)

    def _lora(self, float32: Path) -> dict[PathName, dict[str, Any]]:
        from safetensors.numpy import load_file

        file = float32 / LORA / LORA_FILE
        pairs = load_file(file) if file.is_file() else {}
        return {path: pairs if LORA in names else {} for path, names in self.float32.paths.items()}

    def _prompts(
        self, float32: Path, calibration: Calibration
    ) -> Iterator[tuple[Sequence[int], Features | None]]:
        """Ids of each prompt, and what the vision part makes of its images."""
        from surgery.data.vocabulary import load_processor
        from surgery.export.calibration_data import prompts_of

        job, vision = self.job, self._vision
        processor = load_processor(float32 / TOKENIZER, trust_remote_code=job.trust_remote_code)
        tokenizer = getattr(processor, "tokenizer", processor)
        record = self._float(float32, vision) if vision else None
        engine = OnCpu(float32)
        rows = prompts_of(processor if vision else tokenizer, job.calibration, job.context)
        for number, row in enumerate(rows):
            features = None
            if vision and record and row.has_images:
                pixels = row.images["pixel_values"]
                features = calibration.run_vision(engine, vision, record, number, pixels)
            yield row.ids.tolist(), features

    def _float(self, folder: Path, name: str) -> PartRecord:
        """Write a part in float, unless it is there."""
        record_file = _record_file(folder, name)
        if not record_file.is_file():
            part = self.float32.parts[name]
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
            files = tuple(item.write(folder / name, None) for item in part.items)
            record = PartRecord(
                kind=part.kind, dtype=part.dtype, quantisation="none", bytes=0, files=files
            )
            replace_text(record_file, record.model_dump_json())
        found = PartRecord.model_validate_json(record_file.read_bytes())
        _clear(folder / name, found)
        return found

    def _quantized(
        self, work: Path, name: str, calibration: Calibration
    ) -> tuple[ExportedFile, ...]:
        float32, made = work / "float", work / "made" / name
        shutil.rmtree(made, ignore_errors=True)
        record = self._float(float32, name)
        samples = calibration.through(OnCpu(float32), name, record)
        scheme = self.schemes.get(record.kind)
        if scheme is None:
            _record_file(float32, name).unlink()
            (float32 / name).rename(made)
            return record.files
        made.mkdir()
        graphs = (_graph(float32 / name, file, samples) for file in record.files if file.graph)
        return tuple(
            file
            for graph in graphs
            for file in compiled(graph, made, scheme, self.target, self.quantizer)
        )


def _graph(folder: Path, file: ExportedFile, samples: Sequence[CalibrationSample]) -> FloatGraph:
    assert file.graph is not None
    recorded = [sample for sample in samples if sample.file == file.name]
    return FloatGraph(folder / file.name, file.graph, recorded)


def _record_file(float32: Path, part: str) -> Path:
    """What says that a part is there in float, complete."""
    return float32 / f"{part}.json"


def _clear(folder: Path, record: PartRecord) -> None:
    """Remove what quantizing may have left half written next to a part's own files."""
    own_files = {file.name for file in record.files}
    for other in [path for path in folder.iterdir() if path.name not in own_files]:
        shutil.rmtree(other) if other.is_dir() else other.unlink()


def _forget(float32: Path, part: str) -> None:
    _record_file(float32, part).unlink(missing_ok=True)
    shutil.rmtree(float32 / part, ignore_errors=True)
