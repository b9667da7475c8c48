"""A batch whose rows take different paths: split by path, run, and joined in order.

Each path runs once on its own rows, which costs what the rows cost. A layer could not choose by
row, because all rows of a call share one cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.paths.path_state import MULTIMODAL, TEXT, PathName, no_paths, use_path

_NOT_BY_ROW: Final = ("cache_position", "past_key_values", "num_items_in_batch", "logits_to_keep")

_NOT_JOINED_BY_ROW: Final = ("loss", "past_key_values", "image_hidden_states")


class PathCaches(dict[PathName, Any]):
    """Caches of a batch with both paths, as `past_key_values` of its output.

    Args:
        paths: Path of each row.
        caches: Cache of the rows of each path.
    """

    def __init__(self, paths: Sequence[PathName], caches: Mapping[PathName, Any]) -> None:
        super().__init__(caches)
        self.paths = tuple(paths)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of cached tokens, the same for both paths."""
        cache = next(iter(self.values()))
        return int(cache.get_seq_length(layer_idx))


def forward_rows(
    model: Any, paths: Sequence[PathName], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run each row on its path and return one output in the order of the rows.

    Args:
        model: A switched PEFT model.
        paths: Path of each row.
        args: At most `input_ids` (rows, tokens).
        kwargs: Arguments of the model; tensors with the batch as first dimension are split.

    Returns:
        The model's own output type. The loss is the mean over all labels, as without splitting;
        hidden states of images, which belong to no row, are left out.

    Raises:
        SurgeryError: A407, if `paths` doesn't fit the batch.
    """
    kwargs = _named(args, kwargs)
    if kwargs.get("return_dict") is False:
        raise SurgeryError(_not_with_paths("return_dict=False"))
    groups = list(_groups(model, paths, _rows(kwargs, paths)))
    caches = kwargs.get("past_key_values")
    _refuse_other_rows(caches, paths)
    outputs, owners = [], tile_owners(model, kwargs)
    for path, rows in groups:
        arguments = _select_rows(kwargs, rows, len(paths), owners)
        if caches is not None:
            arguments["past_key_values"] = caches[path]
        with use_path(model._switch, path):
            outputs.append(model(**arguments))
    return _join(paths, groups, outputs, kwargs)


def generate_rows(
    model: Any, paths: Sequence[PathName], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """Generate each row on its path; see `forward_rows`.

    Returns:
        Token ids (rows x returned sequences, length of the longest), padded on the right.

    Raises:
        SurgeryError: A407, if `paths` doesn't fit the batch, or for outputs that can't be joined.
    """
    kwargs = _named(args, kwargs)
    for name in ("streamer", "return_dict_in_generate", "past_key_values"):
        if kwargs.get(name):
            raise SurgeryError(_not_with_paths(name))
    groups = list(_groups(model, paths, _rows(kwargs, paths)))
    outputs, owners = [], tile_owners(model, kwargs)
    for path, rows in groups:
        with use_path(model._switch, path):
            outputs.append(model.generate(**_select_rows(kwargs, rows, len(paths), owners)))
    length = max(output.shape[1] for output in outputs)
    fill = _padding_token(model, kwargs)
    padded = [torch.nn.functional.pad(o, (0, length - o.shape[1]), value=fill) for o in outputs]
    return _scatter([rows for _, rows in groups], padded)


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if len(args) > 1:
        raise SurgeryError(_not_with_paths("more than one positional argument"))
    return {"input_ids": args[0], **kwargs} if args else kwargs


def _rows(kwargs: dict[str, Any], paths: Sequence[str]) -> int:
    tokens = next(
        (kwargs[k] for k in ("input_ids", "inputs", "inputs_embeds") if k in kwargs), None
    )
    rows = -1 if tokens is None else int(tokens.shape[0])
    unknown = sorted(set(paths) - {TEXT, MULTIMODAL})
    if rows != len(paths) or unknown or isinstance(paths, str) or not rows:
        raise SurgeryError(_bad_paths(rows, paths, unknown))
    return rows


def _groups(
    model: Any, paths: Sequence[PathName], rows: int
) -> Iterator[tuple[PathName, torch.Tensor]]:
    if TEXT in paths and not model._switch.has_text_path:
        raise SurgeryError(no_paths(model))
    for path in dict.fromkeys(paths):
        yield path, torch.tensor([i for i in range(rows) if paths[i] == path])


def tile_owners(model: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Row to which each tile of `pixel_values` belongs, in the order of the rows' image tokens.

    A row may have several tiles, or none. All tiles have the same number of tokens.

    Args:
        model: Its config has the id of the image token.
        kwargs: Arguments of the call.

    Returns:
        (tiles,), int64; None without `pixel_values` of one tile each, or without ids.

    Raises:
        SurgeryError: A407, where tokens and tiles don't match.
    """
    pixels, ids = kwargs.get("pixel_values"), kwargs.get("input_ids", kwargs.get("inputs"))
    token = getattr(model.get_base_model().config, "image_token_id", None)
    if pixels is None or ids is None or token is None or pixels.dim() != 4:
        return None
    tokens = (ids == token).sum(dim=1).cpu()
    each, rest = divmod(int(tokens.sum()), len(pixels))
    if rest or not each or (tokens % each).any():
        raise SurgeryError(_not_with_paths("images of unequal numbers of tokens"))
    return torch.arange(len(ids)).repeat_interleave(tokens // each)


def _select_rows(
    kwargs: dict[str, Any], rows: torch.Tensor, count: int, owners: torch.Tensor | None
) -> dict[str, Any]:
    def part(name: str, value: Any) -> Any:
        if name == "pixel_values" and owners is not None:
            return value[torch.isin(owners, rows).to(value.device)]
        by_row = isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == count
        return value[rows.to(value.device)] if by_row and name not in _NOT_BY_ROW else value

    taken = {name: part(name, value) for name, value in kwargs.items()}
    if owners is not None and not len(taken["pixel_values"]):
        del taken["pixel_values"]
    return taken


def _refuse_other_rows(caches: Any, paths: Sequence[PathName]) -> None:
    if caches is not None and not isinstance(caches, PathCaches):
        raise SurgeryError(_not_with_paths("a `past_key_values` of one path"))
    if caches is not None and caches.paths != tuple(paths):
        raise SurgeryError(_not_with_paths("a `past_key_values` whose rows took other paths"))


def _join(
    paths: Sequence[PathName],
    groups: list[tuple[PathName, torch.Tensor]],
    outputs: list[Any],
    kwargs: dict[str, Any],
) -> Any:
    rows = [rows for _, rows in groups]
    joined = {
        name: _join_field(name, rows, [output[name] for output in outputs])
        for name in outputs[0]
        if name not in _NOT_JOINED_BY_ROW
    }
    if "loss" in outputs[0]:
        joined["loss"] = _join_loss(rows, [output.loss for output in outputs], kwargs)
    if outputs[0].get("past_key_values") is not None:
        caches = zip(groups, outputs, strict=True)
        by_path = {path: output.past_key_values for (path, _), output in caches}
        joined["past_key_values"] = PathCaches(paths, by_path)
    return type(outputs[0])(**joined)


def _join_field(name: str, rows: list[torch.Tensor], values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return _scatter(rows, values)
    if isinstance(values[0], tuple):
        return tuple(_join_field(name, rows, list(layer)) for layer in zip(*values, strict=True))
    return values[0]


def _join_loss(
    rows: list[torch.Tensor], losses: list[torch.Tensor], kwargs: dict[str, Any]
) -> torch.Tensor:
    if kwargs.get("num_items_in_batch") is not None:
        return torch.stack(losses).sum()
    labeled = (kwargs["labels"][:, 1:] != -100).sum(dim=1)
    counts = torch.stack([labeled[r.to(labeled.device)].sum() for r in rows])
    used = [loss * n for loss, n in zip(losses, counts, strict=True) if n > 0]
    return torch.stack(used).sum() / counts.sum() if used else torch.stack(losses).mean()


def _scatter(rows: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Put the rows of each group back in order; a row may have several outputs."""
    repeats = values[0].shape[0] // len(rows[0])
    positions = [(r[:, None] * repeats + torch.arange(repeats)).flatten() for r in rows]
    order = torch.cat(positions).argsort().to(values[0].device)
    return torch.cat(values)[order]


def _padding_token(model: Any, kwargs: dict[str, Any]) -> int:
    config = kwargs.get("generation_config") or model.generation_config
    ends = config.eos_token_id
    first = ends[0] if isinstance(ends, list) else ends
    candidates = (kwargs.get("pad_token_id"), config.pad_token_id, first, 0)
    return int(next(token for token in candidates if token is not None))


def _bad_paths(rows: int, paths: Sequence[str], unknown: list[str]) -> Diagnostic:
    if isinstance(paths, str):
        return diagnostic("A407.one_name", path=paths)
    if unknown:
        return diagnostic("A407.unknown", path=unknown[0])
    if rows < 0:
        return diagnostic("A407.no_rows")
    return diagnostic("A407.count", count=len(paths), rows=rows)


def _not_with_paths(what: str) -> Diagnostic:
    return diagnostic("A407.not_with_paths", what=what)
