"""Check, without weights, that a config makes transformers build a wanted depth.

The base and the deeper model are both built on the meta device. Block by block, the deeper model
must have the tensors and the settings of its source block in the base: its window, its type, its
flags. Only the block's own index may differ.
"""

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.meta_device import meta_model
from surgery.model.source import ModelFiles
from surgery.plan.depth.changes import Slot, sources_of
from surgery.plan.depth.config import Config, candidate_depth_keys, with_depth
from surgery.storage.cache import cached

if TYPE_CHECKING:
    from torch import nn

_FORMAT: Final = "2"
_POSITION: Final = re.compile(r"(^|\.)(layer|block)_(idx|id|index|number)$")
Traits = dict[str, Any]


def read_depth(
    files: ModelFiles,
    anatomy: Anatomy,
    slots: Sequence[Slot],
    *,
    trust_remote_code: bool = False,
) -> Config:
    """Return the config.json of a model with another depth, checked once and then cached.

    Args:
        files: Files of the base.
        anatomy: Anatomy of the base.
        slots: The new depth.
        trust_remote_code: Whether the base may run its own Python code; False by default.

    Raises:
        SurgeryError: P218, where no config makes transformers build that depth; P219, where a copy
            that should start as an identity does not.
    """
    depth = [(slot.source, slot.insert.start if slot.insert else "") for slot in slots]
    key = (_FORMAT, version("transformers"), files.config(), anatomy.source, depth)
    ask = partial(_find_verdict, files, anatomy, slots, trust_remote_code)
    verdict = cached("depth", key, _Verdict, ask)
    if verdict.config is None:
        raise SurgeryError(Diagnostic(*verdict.refusal[:4], key=verdict.refusal[4]))
    return verdict.config


class _Verdict(BaseModel):
    """A config, or why there is none: code, what, why, fix and key of a diagnostic."""

    config: Config | None = None
    refusal: tuple[str, str, str, str, str] = ("", "", "", "", "")


def _find_verdict(
    files: ModelFiles, anatomy: Anatomy, slots: Sequence[Slot], trust_remote_code: bool
) -> _Verdict:
    try:
        return _Verdict(config=_proved(files, anatomy, slots, trust_remote_code))
    except SurgeryError as error:
        refusal = error.diagnostics[0]
        return _Verdict(
            refusal=(
                refusal.code,
                refusal.what,
                refusal.why,
                refusal.fix,
                refusal.key,
            )
        )


def _proved(
    files: ModelFiles, anatomy: Anatomy, slots: Sequence[Slot], trust_remote_code: bool
) -> Config:
    from surgery.plan.depth.identity_check import refuse_no_identity

    base = meta_model(files, trust_remote_code)
    faults: list[str] = []
    for config in _candidates(files.config(), base.config, slots, anatomy.count):
        with _written(files, config) as other:
            try:
                deeper = meta_model(other, trust_remote_code)
            except SurgeryError as error:
                faults.append(error.diagnostics[0].why)
                continue
        faults.append(difference(base, deeper, anatomy.blocks_path, sources_of(slots)))
        if not faults[-1]:
            refuse_no_identity(deeper, anatomy, slots)
            return config
    raise SurgeryError(
        diagnostic(
            "P218.config",
            source=anatomy.source,
            model_type=anatomy.model_type,
            fault=faults[0],
            key="op",
        )
    )


def difference(
    base: "nn.Module", deeper: "nn.Module", blocks_path: str, sources: Sequence[int]
) -> str:
    """Describe the first difference of a deeper model's blocks from their sources; empty if none.

    Args:
        base: Model on any device.
        deeper: Model on any device.
        blocks_path: Module name of the list of blocks in both.
        sources: For each block of the deeper model, the index of its source in the base.
    """
    old: Any = base.get_submodule(blocks_path)
    new: Any = deeper.get_submodule(blocks_path)
    if len(new) != len(sources):
        return f"transformers builds {len(new)} blocks from it instead of {len(sources)}"
    before, after = [_traits(block) for block in old], [_traits(block) for block in new]
    for position, source in enumerate(sources):
        for name in {**before[source], **after[position]}:
            wanted, found = before[source].get(name), after[position].get(name)
            if wanted != found and not _counts_blocks(name, before, position, found):
                return _describe(name, position, found, source, wanted)
    outside = _outside(base, blocks_path), _outside(deeper, blocks_path)
    differ = sorted(dict(outside[0].items() ^ outside[1].items()))
    return f"`{differ[0]}` has another shape in it" if differ else ""


def _describe(name: str, position: int, found: object, source: int, wanted: object) -> str:
    if found is None:
        return f"block {position} would lack {name}, which block {source} of the base has"
    base = "lacks it" if wanted is None else f"has {wanted}"
    return f"block {position} would have {name} = {found}, and block {source} of the base {base}"


def _candidates(raw: Config, config: Any, slots: Sequence[Slot], count: int) -> Iterator[Config]:
    text = config.get_text_config(decoder=True)
    fields = text.to_dict()
    alias = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for keys in candidate_depth_keys(fields, alias, count):
        found = copy.deepcopy(raw)
        inner = found
        for step in _keys_to(text, config, raw):
            inner = inner.setdefault(step, {})
        inner.update(with_depth(fields, sources_of(slots), count, keys))
        yield found


def _keys_to(text: Any, config: Any, raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that lead to the text model's fields in a config.json."""
    if text is config:
        nested = raw.get("text_config")  # a composite with only its text model built
        is_part = isinstance(nested, dict) and raw.get("model_type") != text.model_type
        return ("text_config",) if is_part else ()
    for key in config.sub_configs:
        inner = getattr(config, key, None)
        if inner is text:
            return (key,)
        if inner is not None and inner.get_text_config(decoder=True) is text:
            return (key, *_keys_to(text, inner, raw.get(key, {})))
    return ()


@contextmanager
def _written(files: ModelFiles, config: Config) -> Iterator[ModelFiles]:
    """The same model with another config, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="surgery-") as temporary:
        folder = Path(temporary)
        for code in files.folder.glob("*.py"):
            shutil.copy(code, folder)
        (folder / "config.json").write_text(json.dumps(config))
        yield ModelFiles(files.source, folder)


def _traits(block: "nn.Module") -> Traits:
    """Shapes, classes and settings of a block, by name."""
    traits: Traits = {name: tuple(p.shape) for name, p in block.named_parameters()}
    for path, module in block.named_modules():
        prefix = f"{path}." if path else ""
        traits[f"{prefix}class"] = type(module).__name__
        settings = ((k, v) for k, v in vars(module).items() if k[0] != "_" and k != "training")
        traits |= {f"{prefix}{k}": v for k, v in settings if _is_plain(v)}
    return traits


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _counts_blocks(name: str, blocks: Sequence[Traits], position: int, found: object) -> bool:
    """Whether a setting is only the block's own index, as `layer_idx` is, also at a new position.

    It then grows linearly from block to block in the base, and continues to. Its name must say so
    too: Beam's `attn_residual_add_idx` counts blocks as well, and scales what they add.
    """
    if not _POSITION.search(name):
        return False
    known = [(i, t[name]) for i, t in enumerate(blocks) if type(t.get(name)) is int]
    if not known or type(found) is not int:
        return False
    (first, start), (last, end) = known[0], known[-1]
    slope = (end - start) // (last - first) if last > first else 1
    known.append((position, found))
    return slope > 0 and all(value == start + slope * (i - first) for i, value in known)


def _outside(model: "nn.Module", blocks_path: str) -> dict[str, tuple[int, ...]]:
    named = model.named_parameters()
    return {n: tuple(p.shape) for n, p in named if not n.startswith(f"{blocks_path}.")}
