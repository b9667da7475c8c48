"""In one batch, each row runs on the path it asks for."""

from collections.abc import Sequence
from typing import Final

import torch

from surgery.model.numerics import frozen
from surgery.paths.path_state import MULTIMODAL, TEXT, PathName
from surgery.verification.prompts import Prompts
from surgery.verification.runner import Check, Outcome
from surgery.verification.testbed import NEW_TOKENS, Bench, answer, generate_greedily, inputs_of

_BOTH: Final[tuple[PathName, ...]] = (TEXT, MULTIMODAL)


class RowPaths(Check):
    """`paths=[…]` gives each row of a batch what its path gives, in `forward` and in `generate`.

    All that was added is changed at random. Text rows are compared with the base itself, the
    others with the multimodal path, both in batches of the same rows, because the rounding of a
    matrix product may depend on how many rows it has.
    """

    needs_paths = True

    def run(self, bench: Bench) -> Outcome:
        """Run the prompts on alternating paths, both ways round; see `Check.run`."""
        bench.shake()
        rows = len(bench.prompts.ids)
        faults: list[str] = []
        for turn in (0, 1):
            faults += _faults(bench, [_BOTH[(row + turn) % 2] for row in range(rows)])
        if torch.equal(bench.logits(TEXT), bench.logits(MULTIMODAL)):
            faults.append("both paths give the same logits, so that rows can't be told apart")
        good = f"each of {rows} rows in a mixed batch gets the logits and tokens of its own path"
        return self.judge(list(dict.fromkeys(faults)), good, rows=rows)


def _faults(bench: Bench, paths: Sequence[PathName]) -> list[str]:
    prompts, inputs = bench.prompts, inputs_of(bench.model, bench.prompts)
    config = prompts.generation(NEW_TOKENS)
    with frozen(bench.model):
        logits = bench.model(**inputs, paths=paths, use_cache=False).logits
        tokens = bench.model.generate(**inputs, paths=paths, generation_config=config)
    tokens = tokens[:, prompts.ids.shape[1] :]
    faults = []
    for path in dict.fromkeys(paths):
        rows = [row for row, asked in enumerate(paths) if asked == path]
        expected, continued = _alone(bench, path, prompts.take(rows))
        if not torch.equal(logits[rows][prompts.mask[rows].bool()], expected):
            faults.append(f"in a mixed batch, rows on the {path} path get other logits than alone")
        if not torch.equal(tokens[rows], continued):
            faults.append(f"in a mixed batch, rows on the {path} path generate other tokens")
    return faults


def _alone(bench: Bench, path: PathName, part: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch of these rows alone gives; on the text path, what the base itself gives."""
    model = bench.untouched if path == TEXT else bench.model
    return answer(model, part), generate_greedily(model, part)[0]
