"""Export an adapter: each path in a form that runs without this package, and a manifest.

An exporter says what there will be (`export/base.py`); here it is written into a folder that
is complete or not there, and every file is accounted for.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from surgery.adapter.folder import read_plan
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import close_names, nearest, suggestion
from surgery.export.base import (
    BaseForm,
    Contents,
    Exporter,
    ExportJob,
    LoraForm,
    Part,
    WeightType,
    known_exporters,
)
from surgery.export.file_items import Copied, Linked
from surgery.model.quiet import quiet
from surgery.npu.qualcomm.quantize import Quantizer
from surgery.npu.target import Target, load_target
from surgery.plan.serialization import to_json
from surgery.runtime.manifest import ExportedFile, Manifest, PartRecord, installed_versions
from surgery.storage.disk_errors import check_free_space, io_errors
from surgery.storage.file_names import MANIFEST_FILE, PLAN_FILE
from surgery.storage.inputs import Input
from surgery.storage.safetensors.header import Progress
from surgery.storage.staging import staged_folder


class Export:
    """An export that is ready to be written.

    Args:
        to: the name of an exporter.
        job: what is exported, and how.
        document: the adapter's plan.json.

    Raises:
        SurgeryError: R131 for an unknown name, and what the exporter refuses.
    """

    def __init__(self, to: str, job: ExportJob, document: Mapping[str, Any]) -> None:
        self._to = to
        self._job = job
        self._document = document
        self._contents = _exporter(to).contents(job)

    @property
    def name(self) -> str:
        """The recipe's."""
        return self._job.plan.recipe.name

    def copied(self, out: Path) -> int:
        """Bytes of the base's own files among `required_space(out)`, which `link` may spare."""
        items = (item for part in self._contents.parts.values() for item in part.items)
        return sum(item.required_space(out) for item in items if isinstance(item, Linked))

    def required_space(self, out: Path) -> int:
        """Bytes that it will write, where it is written to `out`."""
        items = (item for part in self._contents.parts.values() for item in part.items)
        return sum(item.required_space(out) for item in items)

    def write(
        self, out: Path, *, overwrite: bool = False, progress: Progress | None = None
    ) -> Manifest:
        """Make the folder, or none.

        Args:
            out: the folder to make.
            overwrite: replace a folder that `surgery` wrote before.
            progress: callback; gets the bytes of each step; they add up to `required_space(out)`,
                except of files that turn out not to be linkable.

        Raises:
            SurgeryError: A301 to A308 for the disk, M201 to M207 for the files it is made of.
        """
        with staged_folder(out, overwrite=overwrite, inputs=self._inputs()) as folder:
            check_free_space(out, self.required_space(folder))
            records = {
                name: _written(part, folder / name, progress)
                for name, part in self._contents.parts.items()
            }
            plan = Copied(self._job.folder / PLAN_FILE).write(folder, None)
            manifest = self._manifest(records, plan).sealed()
            with io_errors(folder / MANIFEST_FILE):
                text = to_json(manifest.model_dump(mode="json"))
                (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
        return manifest

    def _inputs(self) -> Iterator[Input]:
        yield from self._job.plan.inputs()
        yield Input(self._job.folder, "the adapter")
        if self._job.calibration:
            yield Input(self._job.calibration, "the calibration data")

    def _manifest(self, parts: dict[str, PartRecord], plan: ExportedFile) -> Manifest:
        job = self._job
        return Manifest(
            format=self._to,
            name=job.plan.recipe.name,
            model=job.plan.anatomy.source,
            fingerprint=self._document["model"]["fingerprint"] or {},
            target=job.target.name if job.target else None,
            base=job.base,
            lora=job.lora,
            paths=dict(self._contents.paths),
            parts=parts,
            toolchain=installed_versions(*self._contents.packages),
            recipe=dict(self._document["recipe"]),
            plan=plan,
            run=tuple(_commands(self._contents)),
        )


def prepare_export(
    adapter: str | os.PathLike[str],
    *,
    to: str = "hf",
    lora: str | None = None,
    base: BaseForm = "unshared",
    target: Target | str | os.PathLike[str] | None = None,
    at: str | os.PathLike[str] | None = None,
    copy: bool = False,
    link: bool = False,
    checksum: bool = False,
    prefill: int | None = None,
    context: int | None = None,
    calibration: str | os.PathLike[str] | None = None,
    quantizer: Quantizer | None = None,
    dtype: WeightType | None = None,
    trust_remote_code: bool = False,
) -> Export:
    """Look at an adapter and its base, and say what will be written.

    Args:
        adapter: the adapter folder.
        to: the name of an exporter, such as `hf`.
        lora: `merge` into its matrices, `keep` as a part of its own, or `svd:RANK` for an adapter
            whose matrices are cut to a rank; None for what the form does best.
        base: whether text has the untouched base, runs on the multimodal path, or has parts that
            are all its own.
        target: a device or its name, for the forms that are made for one, and for the manifest.
        at: another place of the base than the plan names.
        copy: whether files of the base are copied where they could share its bytes as a reflink.
        link: whether they may be hard links, where they can't be reflinks and aren't copied: who
            writes into one then writes into the base.
        checksum: whether linked files are read for their SHA-256.
        prefill: tokens of one step of the prompt, for forms of static shape; 64 unless given.
        context: tokens of prompt and answer together, for the same; 1,024 unless given.
        calibration: records whose ranges a quantized form takes; None for built-in sentences.
        quantizer: who finds the scales of weights; None for AIMET where it is installed.
        dtype: type of most matrices, for forms that have a choice; f16 unless given.
        trust_remote_code: whether the base may run code of its own.

    Raises:
        SurgeryError: A401 and A402 for the adapter, R121 for the target, R131 for an unknown form,
            A610 for an option that the form has no use for, A634 for an unknown `lora`, A602 to
            A604 for what the form can't hold, M for the base.
    """
    options: dict[str, Any] = {
        "copy": copy or None,
        "link": link or None,
        "checksum": checksum or None,
        "prefill": prefill,
        "context": context,
        "calibration": Path(calibration) if calibration else None,
        "quantizer": quantizer,
        "dtype": dtype,
    }
    given = {name: value for name, value in options.items() if value is not None}
    exporter, adapter = _exporter(to), Path(adapter)
    form, rank = (exporter.lora, None) if lora is None else _lora_form(lora)
    _refuse_unused({**given, **({"lora svd:RANK": rank} if rank else {})}, exporter)
    device = load_target(target) if target else None
    plan, document = read_plan(adapter, at, trust_remote_code=trust_remote_code)
    job = ExportJob(
        *(plan, adapter, form, base),
        **{"target": device, "rank": rank, "trust_remote_code": trust_remote_code, **given},
    )
    return Export(to, job, document)


class ExportOptions(TypedDict, total=False):
    """The options of `export_adapter`, as `prepare_export` explains them."""

    to: str
    lora: str | None
    base: BaseForm
    target: Target | str | os.PathLike[str] | None
    at: str | os.PathLike[str] | None
    copy: bool
    link: bool
    checksum: bool
    prefill: int | None
    context: int | None
    calibration: str | os.PathLike[str] | None
    quantizer: Quantizer | None
    dtype: WeightType | None
    trust_remote_code: bool


@quiet()
def export_adapter(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **options: Unpack[ExportOptions],
) -> Manifest:
    """Export an adapter.

    Args:
        adapter: the adapter folder.
        out: the folder to make.
        overwrite: replace a folder that `surgery` wrote before.
        options: those of `prepare_export`.

    Raises:
        SurgeryError: as `prepare_export`, before anything is written; A301 to A308 for the disk.
        TypeError: for an option that isn't there, with the nearest that is.
    """
    unknown = next((name for name in options if name not in ExportOptions.__annotations__), None)
    if unknown:
        raise TypeError(f"export_adapter() has no option `{unknown}`; {_nearest_option(unknown)}")
    return prepare_export(adapter, **options).write(Path(out), overwrite=overwrite)


def _lora_form(given: str) -> tuple[LoraForm, int | None]:
    """What becomes of LoRA, and the largest rank of an adapter."""
    for form in get_args(LoraForm):
        if given == form:
            return form, None
    found = re.fullmatch(r"svd:0*([1-9]\d*)", given)
    if found is None:
        raise SurgeryError(diagnostic("A634.form", lora=given))
    return "keep", int(found[1])


def _nearest_option(name: str) -> str:
    return nearest(name, ("overwrite", *ExportOptions.__annotations__))


def _exporter(to: str) -> Exporter:
    known = known_exporters()
    if to not in known:
        raise SurgeryError(_unknown_form(to, known))
    return known[to]


def _refuse_unused(given: Iterable[str], exporter: Exporter) -> None:
    """Refuse an option that would change nothing, since who gave it believes that it does."""
    unused = next((name for name in given if name not in exporter.takes), None)
    if unused:
        raise SurgeryError(_no_use(unused, exporter.name))


def _written(part: Part, folder: Path, progress: Progress | None) -> PartRecord:
    with io_errors(folder):
        folder.mkdir()
    files = tuple(item.write(folder, progress) for item in part.items)
    size = sum(file.bytes for file in files)
    return PartRecord(
        kind=part.kind,
        dtype=part.dtype,
        quantisation=part.quantization,
        bytes=size,
        files=files,
    )


def _commands(contents: Contents) -> Iterator[str]:
    for path in contents.paths:
        yield f'surgery run . --path {path} --prompt "…"'


def _no_use(option: str, to: str) -> Diagnostic:
    exporters = [name for name, exporter in known_exporters().items() if option in exporter.takes]
    return diagnostic(
        "A610", option=option, to=to, exporters=" and ".join(exporters), first=exporters[0]
    )


def _unknown_form(to: str, known: Mapping[str, Exporter]) -> Diagnostic:
    fix = suggestion(f"--to {name}" for name in close_names(to.lower(), known))
    serving = [name for name, exporter in known.items() if to.lower() in exporter.serves]
    if serving and not fix:
        fix = f"begin with `--to {serving[0]}`: {known[serving[0]].gives}"
    forms = (f"`{name}` ({exporter.gives})" for name, exporter in known.items())
    return diagnostic(
        "R131", to=to, forms=list(forms), fix=fix or f"choose one of {', '.join(known)}"
    )
