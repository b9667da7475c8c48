"""What an export holds: its parts, which path uses which, every file with its SHA-256.

`surgery run` reads it, and so can anything that reads JSON.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from platform import python_version
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.distribution import own_version
from surgery.diagnostics.wording import first_line
from surgery.storage.escape import escapes
from surgery.storage.file_names import MANIFEST_FILE
from surgery.storage.folder_kinds import did_you_mean, why_none
from surgery.storage.json_file import digest, read_object
from surgery.storage.link import LinkMethod

FORMAT_VERSION: Final = "1.0"

PathName = Literal["text", "multimodal"]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ValueRecord(_Data):
    """An input or an output of a graph."""

    name: str
    """In the graph."""

    dtype: str
    """A numpy name."""

    shape: tuple[int, ...]
    """Static; of a program, that of the longest step."""

    source: str = ""
    """What an input is: `ids`, `positions`, `hidden`, `mask`, `past_key`, `past_value`, `lora` for
    a tensor of the part `lora` (zeros on a path without it), an output of `positions`, or
    `pixel_values` of one tile. The output `new_hidden` is `hidden` for the next part; `new_key` and
    `new_value` go into the cache; `features` take the positions of the image in `hidden`, behind
    the embeddings."""


class GraphRecord(_Data):
    """One graph of static shape."""

    phase: Literal["prefill", "decode", "both", "image"]
    """Many tokens at once, or one; or one tile of an image, before the prompt is read."""

    tokens: int
    """Of a step; a shorter one is padded at the end. Of an image, the positions a tile fills."""

    window: int
    """Tokens that the cache has positions for; 0 for a graph without one."""

    sliding: int | None = None
    """How many tokens back attention sees, itself among them; None for all."""

    image_token: int | None = None
    """Of the graph of an image: the id in whose positions of a prompt its features go, in order."""

    inputs: tuple[ValueRecord, ...]
    """In the graph's order."""

    outputs: tuple[ValueRecord, ...]
    """In the graph's order."""

    weights: str = "weights.bin"
    """The file of the same part that holds its weights; the part's graphs share it."""

    cosine: dict[PathName, dict[str, float]] = {}
    """Of a quantized graph: each output against float's, for each path that the graph is on, at the
    end of a prompt that was kept out of the calibration."""


class ExportedFile(_Data):
    """One file of an export."""

    name: str
    """Relative to its part's folder."""

    bytes: int
    """Its size."""

    sha256: str | None
    """In hex; None for a file that shares the base's bytes and was not read. The base's
    `fingerprint` stands for it."""

    how: LinkMethod
    """Newly written, copied, or linked to the file it was made of."""

    graph: GraphRecord | None = None
    """What is in it, if it is a graph."""

    lost: dict[str, float] = {}
    """Of an adapter cut to a rank: by matrix, the Frobenius norm of what was cut off, relative to
    that of the complete change."""


class PartRecord(_Data):
    """One part: a folder that is opened as one."""

    kind: str
    """What it is, such as `transformers` or `peft`."""

    dtype: str
    """Type of most of its weights, a safetensors name."""

    quantisation: str
    """`none`, or weights and activations as in `w4a16`."""

    bytes: int
    """Size of all its files."""

    files: tuple[ExportedFile, ...]
    """All of them."""


class Manifest(_Data):
    """The content of manifest.json."""

    format_version: str = FORMAT_VERSION
    """Of this file."""

    format: str
    """The word of the exporter, such as `hf`."""

    name: str
    """The recipe's."""

    model: str
    """The base, as the user calls it."""

    fingerprint: dict[str, Any]
    """Of the base, as plan.json has it; it was compared with the base's files."""

    target: str | None
    """The device, if one was named."""

    base: Literal["unshared", "shared", "apart"]
    """Whether text runs on the untouched base, on the multimodal path, or on parts that are all its
    own."""

    lora: Literal["merge", "keep"]
    """Whether LoRA is merged into the matrices, or is a part of its own."""

    paths: dict[PathName, tuple[str, ...]]
    """The parts that each path uses: the model first, or in the order in which they run."""

    parts: dict[str, PartRecord]
    """Every part by the name of its folder."""

    toolchain: dict[str, str]
    """Versions of what made it."""

    recipe: dict[str, Any]
    """The recipe, every value spelled out."""

    plan: ExportedFile
    """The plan, a file next to this one."""

    run: tuple[str, ...]
    """Commands that run it, in the export's folder."""

    sha256: str | None = None
    """Of all the rest, in hex, so that a change is seen; None in a manifest of before."""

    def logits_width(self, path: PathName) -> int:
        """How many ids the graphs of a path know.

        The embedding table has as many rows: what has more of them, such as Mllama with its row for
        images, is no chain of graphs.
        """
        files = (file for part in self.paths[path] for file in self.parts[part].files)
        outputs = (value for file in files if file.graph for value in file.graph.outputs)
        return next(value.shape[-1] for value in outputs if value.name == "logits")

    def sealed(self) -> "Manifest":
        """The same manifest with its `sha256`."""
        return self.model_copy(update={"sha256": _digest(self.model_dump(mode="json"))})


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, of this package and of others that are installed.

    Args:
        packages: names on the package index.
    """
    found = {"python": python_version(), "surgery": own_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        SurgeryError: A601, where the folder has none, or one of another version.
    """
    try:
        content = read_object(folder / MANIFEST_FILE)
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is {content['format_version']!r}")
        manifest = Manifest.model_validate(content)
        _refuse_changed(manifest, content, folder)
        return manifest
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"`{'.'.join(map(str, first['loc']))}`: {first['msg'].lower()}"
        raise SurgeryError(_not_an_export(folder, reason)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SurgeryError(_not_an_export(folder, first_line(error))) from error


def _not_an_export(folder: Path, reason: str) -> Diagnostic:
    return diagnostic(
        "A601.not_an_export",
        folder=folder,
        why=why_none(folder, MANIFEST_FILE, reason),
        fix=did_you_mean(folder, "`surgery export ADAPTER --to hf --out DIR` makes an export"),
    )


def _refuse_changed(manifest: Manifest, content: dict[str, Any], folder: Path) -> None:
    """Refuse a manifest that leads out of its folder, names what isn't there, or was edited."""
    files = [(part, file.name) for part, record in manifest.parts.items() for file in record.files]
    used = [name for names in manifest.paths.values() for name in names]
    for name in (*manifest.parts, *used, *(file for _, file in files), manifest.plan.name):
        if not PurePath(name).parts or escapes(name):
            raise SurgeryError(
                diagnostic("A607", manifest_file=MANIFEST_FILE, folder=folder, name=name)
            )
    for path in get_args(PathName):
        names = manifest.paths.get(path, ())
        unknown = next((name for name in names if name not in manifest.parts), None)
        if unknown or not names:
            what = f"the unknown part `{unknown}`" if unknown else "no part"
            raise SurgeryError(
                diagnostic("A608", manifest_file=MANIFEST_FILE, folder=folder, path=path, what=what)
            )
    if manifest.sha256 is not None and manifest.sha256 != _digest(content):
        raise SurgeryError(diagnostic("A609", manifest_file=MANIFEST_FILE, folder=folder))


def _digest(content: dict[str, Any]) -> str:
    return digest({key: value for key, value in content.items() if key != "sha256"})
