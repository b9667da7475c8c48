"""Several files as one sequence of rows, in an order that depends on the seed alone."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from surgery.data.encoder import Row
from surgery.data.packing import pack
from surgery.data.rows import Rows
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.recipe.training_schema import Stage

Order = NDArray[np.int64]
"""(rows, 2): index of the file, and of its row."""

_PASS: Final = 0
_SHUFFLE: Final = 1


class Mixture(Sequence[Any]):
    """The rows of a stage in the order of training.

    Args:
        sources: Rows of each file.
        order: Rows to take of them.
        packs: First and last index in `order` of each packed row; None without packing.
    """

    def __init__(
        self, sources: Sequence[Rows], order: Order, packs: Sequence[tuple[int, int]] | None = None
    ) -> None:
        self.sources, self.order, self.packs = sources, order, packs

    def __len__(self) -> int:
        return len(self.order) if self.packs is None else len(self.packs)

    def __getitem__(self, index: Any) -> list[Row]:
        """The rows of one row of the batch: one, or all of a pack."""
        if index >= len(self):
            raise IndexError(index)
        first, end = (index, index + 1) if self.packs is None else self.packs[index]
        return [self.sources[file][row] for file, row in self.order[first:end].tolist()]

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Report what is wrong with a row also where a worker of the data loader found it.

        torch recreates an error of a worker from its text alone, so the row is encoded again here.
        """
        try:
            yield
        except SurgeryError:
            for source in self.sources:
                source.raise_again()
            raise

    @property
    def skipped(self) -> int:
        """Number of bad records that were left out so far."""
        return sum(source.skipped for source in self.sources)


def mix(sources: Sequence[Rows], stage: Stage, seed: int) -> Mixture:
    """Order the rows of a stage: as many as its steps take.

    Args:
        sources: Rows of each file, in the order of `stage.sources`.
        stage: Settings with weights, shares, steps and packing.
        seed: Seed of the order.

    Raises:
        SurgeryError: D111, for an impossible share of text.
    """
    weights = [source.weight for source in stage.sources.values()]
    counts = epoch_sizes(sources, weights, stage.text_mix)
    rows = math.ceil(stage.epochs * int(counts.sum()))
    if stage.packing:
        return _packed(sources, stage, counts, rows, seed)
    steps = stage.steps or math.ceil(rows / stage.batch)
    sizes = [len(source) for source in sources]
    return Mixture(sources, make_order(sizes, counts, steps * stage.batch, seed))


def _packed(sources: Sequence[Rows], stage: Stage, counts: Order, rows: int, seed: int) -> Mixture:
    """Pack as many rows as fill the steps; each is encoded once for its length."""
    lengths = [[len(row.ids) for row in source] for source in sources]
    sizes, wanted = [len(source) for source in sources], stage.steps
    while True:
        order = make_order(sizes, counts, rows, seed)
        packs = pack((lengths[file][row] for file, row in order.tolist()), stage.length)
        wanted = wanted or math.ceil(len(packs) / stage.batch)
        if len(packs) > wanted * stage.batch:  # the last one may not be full yet
            return Mixture(sources, order, packs[: wanted * stage.batch])
        rows *= 2


def epoch_sizes(sources: Sequence[Rows], weights: Sequence[float], text_mix: float | None) -> Order:
    """Number of rows of each file in an epoch.

    Args:
        sources: Rows of each file.
        weights: How often each row of a file is taken.
        text_mix: Share of rows without images; None to keep the files' sizes.

    Raises:
        SurgeryError: D111, where `text_mix` is impossible with these files.
    """
    sizes = np.array([len(s) * w for s, w in zip(sources, weights, strict=True)])
    is_text = np.array([not source.has_images for source in sources])
    if text_mix is not None and (text_mix > 0 or is_text.any()):
        if is_text.all() or not is_text.any():
            raise SurgeryError(_no_mix(text_mix, has_text=bool(is_text.any())))
        wanted = sizes[~is_text].sum() * text_mix / (1 - text_mix)
        sizes = np.where(is_text, sizes * wanted / sizes[is_text].sum(), sizes)
    counts: Order = np.maximum(np.rint(sizes), sizes > 0).astype(np.int64)
    return counts


def make_order(lengths: Sequence[int], counts: Order, rows: int, seed: int) -> Order:
    """The order of the rows: epoch after epoch, each shuffled, no row again before all were taken.

    Args:
        lengths: Number of rows of each file.
        counts: Number of rows of each file in an epoch.
        rows: Number of rows to return.
        seed: Seed of the stage.

    Returns:
        (rows, 2), the same for the same arguments on every machine.
    """
    epochs = -(-rows // int(counts.sum()))
    taken = [
        _passes(length, int(count) * epochs, seed, file).reshape(epochs, -1)
        for file, (length, count) in enumerate(zip(lengths, counts, strict=True))
    ]
    order = [_shuffled([part[epoch] for part in taken], seed, epoch) for epoch in range(epochs)]
    return np.concatenate(order)[:rows]


def _passes(length: int, count: int, seed: int, file: int) -> Order:
    """Rows of one file, one permutation after the other."""
    passes = -(-count // length)
    orders = [_generator(seed, _PASS, file, n).permutation(length) for n in range(passes)]
    return np.concatenate([*orders, np.zeros(0, np.int64)]).astype(np.int64)[:count]


def _shuffled(parts: Sequence[Order], seed: int, epoch: int) -> Order:
    files = np.concatenate([np.full(len(part), file) for file, part in enumerate(parts)])
    pairs = np.stack([files, np.concatenate(parts)], axis=1)
    order: Order = _generator(seed, _SHUFFLE, epoch).permutation(pairs)
    return order


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _no_mix(share: float, *, has_text: bool) -> Diagnostic:
    lacking = "with images" if has_text else "without images"
    return diagnostic("D111", share=share, lacking=lacking, key="text_mix")
