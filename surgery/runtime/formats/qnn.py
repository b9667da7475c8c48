"""Runs `qnn` exports in the NPU's emulator, or as the CPU computes the same quantized graphs."""

from pathlib import Path
from typing import ClassVar

from surgery.npu.qualcomm.emulator import Emulator
from surgery.npu.target import load_target
from surgery.runtime.base import Answer, Prompt, Runner
from surgery.runtime.cpu_engine import OnCpu
from surgery.runtime.graph_loop import generate_answer, open_loop
from surgery.runtime.manifest import Manifest, PathName
from surgery.runtime.prompt_chunk import Arrays
from surgery.runtime.vision_part import image_part


class QnnRunner(Runner):
    """Runs what was compiled in the emulator, and the rest on the CPU."""

    name: ClassVar[str] = "qnn"

    def run(
        self,
        folder: Path,
        manifest: Manifest,
        path: PathName,
        prompt: Prompt,
        *,
        trust_remote_code: bool,
    ) -> Answer:
        """Generate greedily on a path; see `Runner.run`.

        Raises:
            SurgeryError: A614 where prompt and answer are longer than the graphs' cache, X101 and
                X102 where the emulator can't run.
        """
        with open_emulator(manifest) as emulator:
            engine = OnEmulator(folder, emulator)
            loop = open_loop(folder, manifest, path, engine)
            vision = image_part(engine, manifest.paths[path], manifest.parts)
            return generate_answer(
                folder,
                manifest,
                loop,
                path,
                prompt,
                vision=vision,
                trust_remote_code=trust_remote_code,
            )


class OnEmulator:
    """Runs compiled graphs in the emulator, others on the CPU.

    Args:
        folder: the export.
        emulator: for its device.
    """

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self._folder, self._emulator = folder.absolute(), emulator
        self._cpu = OnCpu(folder)

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        """Run a graph; see `Engine.run`."""
        graph = self._folder / part / file
        if graph.with_name(f"{graph.stem}_qnn.bin").is_file():
            return self._emulator.run(graph, feeds)
        return self._cpu.run(part, file, feeds)


class OnReference:
    """Runs the quantized graphs on the CPU, node by node as they are written.

    Args:
        folder: the export.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cpu = OnCpu(folder, exact=True)

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        """Run a graph; see `Engine.run`."""
        quantized = f"{Path(file).stem}.qdq.onnx"
        is_quantized = (self._folder / part / quantized).is_file()
        return self._cpu.run(part, quantized if is_quantized else file, feeds)


def open_emulator(manifest: Manifest) -> Emulator:
    """Start the emulator of an export's device.

    Raises:
        SurgeryError: X101 and X102 where it can't run here.
    """
    assert manifest.target is not None
    chip = load_target(manifest.target).chip
    assert chip is not None
    return Emulator(*chip)
