"""The paper's study in small: `make study`, or `PYTHONPATH=scripts python -m study --quick`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from joblib import Parallel, delayed
from tiny_qwen2_corpus import read_corpus, to_jsonl

from study.align import align
from study.pictures import (
    KINDS,
    TEST,
    TRAINING,
    Pictures,
    blind_accuracy,
    make_pictures,
    write_lines,
    write_questions,
)
from study.report import write_report
from study.score import Score, broken_promises, score
from study.sizes import FULL, QUICK, Size
from study.sweeps import STAGE, make_sweeps, run_sweep
from study.tower import pretrain_tower

BUILT_IN_TOWER = "builtin/tiny-vit"
SIDE = 32  # pixels of a picture
BATCH = 32
TEXT_SHARE = 0.03  # of the rows; of what is learned half, as a row of text has 64 tokens, not 2
RATES = {"align": 1e-2, STAGE: 1e-3}
PROJECTOR_RATE = 5e-3  # while the recipes train; with everyone's, answers come much later
WARMUP = 0.1


def main() -> int:
    """Make the data, align, train, measure and report; 1, if what must hold exactly doesn't."""
    args = _arguments()
    size, out, started = QUICK if args.quick else FULL, args.out.absolute(), time.monotonic()
    if out.exists():
        raise SystemExit(f"{out} exists; remove it, or choose another --out")
    splits = make_pictures(SIDE, size.test)
    blind = _write_data(out / "data", splits)
    # one thread for each job: at this width, more of them wait for each other
    work = Parallel(n_jobs=args.jobs)
    work(delayed(_aligned)(args, size, seed, splits[TRAINING], out) for seed in size.seeds)
    scores = _trained_and_scored(args, size, out, work)
    minutes = (time.monotonic() - started) / 60
    write_report(out, scores, blind, _about(args, size, minutes))
    print(f"wrote {out / 'index.html'} in {minutes:.1f} minutes")
    broken = broken_promises(scores)
    for line in broken:
        print(f"the text path is not the base: {line}")
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="study", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few recipes and steps, one seed")
    parser.add_argument("--out", type=Path, default=Path("outputs/study"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="that run at once")
    parser.add_argument("--model", default="builtin/tiny-qwen2", help="the decoder")
    parser.add_argument("--vision", default=BUILT_IN_TOWER, help="another is used as it is")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row, at most")
    parser.add_argument("--rate", type=float, default=RATES[STAGE], help="peak, of every recipe")
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16")
    return parser.parse_args()


def _write_data(folder: Path, splits: Mapping[str, Pictures]) -> dict[str, float]:
    """Write pictures, questions and text; return the accuracy of who sees nothing."""
    asked = write_questions(folder, splits)
    for kind in KINDS:
        rows = (question.record() for question in asked[TEST] if question.kind == kind)
        write_lines(folder / f"{kind}.jsonl", rows)
    corpus = read_corpus()
    (folder / "text.jsonl").write_text(to_jsonl(corpus.topics), encoding="utf-8")
    (folder / "heldout.jsonl").write_text(to_jsonl(corpus.heldout), encoding="utf-8")
    return blind_accuracy(asked[TRAINING], asked[TEST])


def _aligned(args: argparse.Namespace, size: Size, seed: int, seen: Pictures, out: Path) -> None:
    vision = args.vision
    if vision == BUILT_IN_TOWER:
        vision = str(out / "towers" / str(seed))
        share = pretrain_tower(BUILT_IN_TOWER, seen, size.tower, seed, Path(vision))
        print(f"seed {seed}: the tower names {share:.1%} of the halves it is trained on")
    words = [f"model={args.model}", f"vision={vision}", f"seed={seed}"]
    words += ["stages.align.train=[projector]", f"stages.align.data={out}/data/{TRAINING}.jsonl"]
    words += _settings("align", size.align, RATES["align"], args)
    align(words, out / "align" / str(seed), out / "aligned" / str(seed))


def _trained_and_scored(
    args: argparse.Namespace, size: Size, out: Path, work: Parallel
) -> list[Score]:
    data = out / "data"
    sight, text = data / f"{TRAINING}.jsonl", data / "text.jsonl"
    common = [f"model={out}/aligned/${{seed}}", *_settings(STAGE, size.tune, args.rate, args)]
    common += [f"stages.{STAGE}.rates.projector={PROJECTOR_RATE}"]
    scores: list[Score] = []
    for sweep in make_sweeps(size.recipes, size.mixed, sight, text, TEXT_SHARE):
        results = run_sweep(sweep, common, size.seeds, args.jobs, out / "sweeps")
        heldout = data / "heldout.jsonl"
        scores += work(delayed(score)(result, sweep.mixed, data, heldout) for result in results)
    return scores


def _settings(stage: str, steps: int, rate: float, args: argparse.Namespace) -> list[str]:
    values = {
        "steps": steps,
        "batch": BATCH,
        "rate": rate,
        "warmup": WARMUP,
        "length": args.length,
        "precision": args.precision,
    }
    return [f"stages.{stage}.{key}={value}" for key, value in values.items()]


def _about(args: argparse.Namespace, size: Size, minutes: float) -> Sequence[str]:
    seeds = ", ".join(map(str, size.seeds))
    return [
        f"{args.model} with {args.vision}; seeds {seeds}.",
        f"Steps: {size.tower} of the tower, {size.align} of the projector alone, {size.tune} of "
        f"each recipe, of {BATCH} rows of at most {args.length} tokens, in {args.precision}.",
        f"Peak learning rates: {RATES['align']:g} of the projector alone; then {args.rate:g} for "
        f"every recipe, {PROJECTOR_RATE:g} for its projector.",
        f"{TEXT_SHARE:.0%} of the rows are text where text is mixed in.",
        f"{minutes:.1f} minutes with {args.jobs} jobs at once.",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
