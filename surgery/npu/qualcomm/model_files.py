"""The files of one ONNX graph: itself, and those that hold its tensors."""

import hashlib
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import first_line


def files_of(model: Path) -> list[Path]:
    """Return the graph's file, then those of its external tensors in the order of their names.

    Raises:
        SurgeryError: X107 where it can't be read.
    """
    import onnx

    try:
        graph = onnx.load(model, load_external_data=False).graph
    except Exception as error:
        raise SurgeryError(diagnostic("X107", name=model.name, reason=first_line(error))) from error
    return [model, *(model.parent / target for target in sorted(set(_locations(graph))))]


def graph_digest(model: Path) -> str:
    """Return the sha256 of a graph and of all its tensors.

    Raises:
        SurgeryError: X107.
    """
    digest = hashlib.sha256()
    try:
        for file in files_of(model):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise SurgeryError(diagnostic("X107", name=model.name, reason=first_line(error))) from error
    return digest.hexdigest()


@cache
def implementation_digest() -> str:
    """Return the sha256 of how this package quantizes, compiles and compares.

    What is kept from one run to the next depends on it, as it depends on the toolchain.
    """
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def copied(model: Path, folder: Path) -> Path:
    """Copy a graph with its tensors; onnx refuses links, for fear of what they may lead to.

    Raises:
        SurgeryError: X107.
    """
    for file in files_of(model):
        target = folder / file.relative_to(model.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / model.name


def _locations(graph: object) -> Iterator[str]:
    """Where external tensors are, those of subgraphs and of attributes too."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    assert isinstance(graph, onnx.GraphProto)
    tensors = [*graph.initializer]
    for attribute in (a for node in graph.node for a in node.attribute):
        tensors += [attribute.t, *attribute.tensors]
        for inner in (attribute.g, *attribute.graphs):
            yield from _locations(inner)
    yield from (ExternalDataInfo(t).location for t in tensors if uses_external_data(t))
