"""Runs `onnx` exports with onnxruntime on the CPU."""

from pathlib import Path
from typing import ClassVar

from surgery.runtime.base import Answer, Prompt, Runner
from surgery.runtime.cpu_engine import OnCpu
from surgery.runtime.graph_loop import generate_answer, open_loop
from surgery.runtime.manifest import Manifest, PathName
from surgery.runtime.vision_part import image_part


class OnnxRunner(Runner):
    """Loads the graphs of a path and generates."""

    name: ClassVar[str] = "onnx"

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
            SurgeryError: A614 where prompt and answer are longer than the graphs' cache, A615
                without onnxruntime.
        """
        engine = OnCpu(folder)
        loop = open_loop(folder, manifest, path, engine)
        vision = image_part(engine, manifest.paths[path], manifest.parts)
        return generate_answer(
            folder, manifest, loop, path, prompt, vision=vision, trust_remote_code=trust_remote_code
        )
