"""In one batch, each row runs on its own path."""

from collections.abc import Sequence
from typing import Final

import torch

from surgery.model.numerics import frozen
from surgery.paths.path_state import MULTIMODAL, TEXT, PathName
from surgery.verification.context import (
    NEW_TOKENS,
    VerificationContext,
    forward_logits,
    generate_greedily,
    inputs_of,
)
from surgery.verification.prompts import Prompts
from surgery.verification.runner import Check, Outcome

_BOTH: Final[tuple[PathName, ...]] = (TEXT, MULTIMODAL)


class RowPaths(Check):
    """`paths=[…]` gives each row of a batch what its path gives, in `forward` and in `generate`.

    All that was added is changed at random. Text rows are compared with the base itself, the others
    with the multimodal path, both in batches of the same rows, because the rounding of a matrix
    product may depend on the number of rows.
    """

    needs_paths = True

    def run(self, context: VerificationContext) -> Outcome:
        """Run the prompts on alternating paths, both ways round; see `Check.run`."""
        context.perturb()
        rows = len(context.prompts.ids)
        failures: list[str] = []
        for turn in (0, 1):
            failures += _failures(context, [_BOTH[(row + turn) % 2] for row in range(rows)])
        if torch.equal(context.logits(TEXT), context.logits(MULTIMODAL)):
            failures.append("both paths give the same logits, so that rows can't be told apart")
        success = f"each of {rows} rows in a mixed batch gets the logits and tokens of its own path"
        return self.judge(list(dict.fromkeys(failures)), success, rows=rows)


def _failures(context: VerificationContext, paths: Sequence[PathName]) -> list[str]:
    prompts, inputs = context.prompts, inputs_of(context.model, context.prompts)
    config = prompts.generation(NEW_TOKENS)
    with frozen(context.model):
        logits = context.model(**inputs, paths=paths, use_cache=False).logits
        tokens = context.model.generate(**inputs, paths=paths, generation_config=config)
    tokens = tokens[:, prompts.ids.shape[1] :]
    failures = []
    for path in dict.fromkeys(paths):
        rows = [row for row, asked in enumerate(paths) if asked == path]
        expected, continued = _alone(context, path, prompts.take(rows))
        if not torch.equal(logits[rows][prompts.mask[rows].bool()], expected):
            failures.append(
                f"in a mixed batch, rows on the {path} path get other logits than alone"
            )
        if not torch.equal(tokens[rows], continued):
            failures.append(f"in a mixed batch, rows on the {path} path generate other tokens")
    return failures


def _alone(
    context: VerificationContext, path: PathName, part: Prompts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a batch of these rows alone; on the text path, of the base itself."""
    model = context.untouched if path == TEXT else context.model
    return forward_logits(model, part), generate_greedily(model, part)[0]
