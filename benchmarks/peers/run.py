"""Who makes a decoder deeper, and gets it right? See README.md.

    python benchmarks/peers/run.py [TYPE]... [--mergekit PYTHON] [--dry]

Saves a tiny random model of each type under work/ and lets `surgery`, mergekit and PEFT repeat two
of its four blocks. Writes results.json and the table in README.md, and removes work/.
"""

import argparse
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import transformers
from judge import TOLERANCE, difference, judge, load, logits, logits_of_repeated
from measure import SURGERY, run_child, table, write_results
from models import BLOCKS, MODELS, Tiny, save_tiny
from passthrough import add_option, find_mergekit, passthrough, versions
from peft import LoraConfig, get_peft_model

HERE = Path(__file__).parent.resolve()
WORK = HERE / "work"
CACHE = {"SURGERY_CACHE": str(WORK / "cache")}
RANGES = [[0, 2], [1, 3], [2, 4]]
ORDER = [block for start, end in RANGES for block in range(start, end)]
RECIPE = f"""
defaults: [base, _self_]
operations:
  deeper: {{op: insert, ranges: {RANGES}, start: copy}}
"""
ERROR = r"\s*(error\[|[\w.]*(Error|Exception)\b)"
REASON, KEPT = 110, 400
"""Characters of an error that go into the table, and into results.json."""


Outcome = dict[str, str]
"""`outcome`: right, wrong or fails; `reason`."""
Outcomes = dict[str, dict[str, Outcome]]
"""By type, then by contender."""


@dataclass(frozen=True)
class Case:
    """One model to be deepened: its type, where it is, where the result goes, its right logits."""

    name: str
    tiny: Tiny
    source: Path
    out: Path
    wanted: torch.Tensor

    def faults_of(self, model: torch.nn.Module) -> list[str]:
        """Return what is wrong with a model in memory."""
        return judge(model, self.tiny.blocks, self.wanted, len(ORDER))

    def faults_of_folder(self) -> list[str]:
        """Return what is wrong with the folder that was written, when opened anew."""
        model, faults = load(self.out)
        return faults + self.faults_of(model)


def by_surgery(case: Case) -> list[str]:
    recipe = WORK / "deeper.yaml"
    recipe.write_text(RECIPE)
    run_child([*SURGERY, "apply", recipe, f"model={case.source}", "--out", case.out], CACHE)
    return case.faults_of_folder()


def by_mergekit(case: Case, python: Path) -> list[str]:
    run_child(passthrough(python, case.source, RANGES, "float32", case.out))
    return case.faults_of_folder()


def by_peft(case: Case) -> list[str]:
    return case.faults_of(replicated(case).get_base_model())


def by_peft_merged(case: Case) -> list[str]:
    """Judge what is left of trained adapters after a merge, a save and a reload."""
    model = replicated(case)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # as after training: a copy and its source differ
            torch.nn.init.normal_(parameter, std=0.1)
    trained = logits(model)
    merged = model.merge_and_unload()
    off = difference(logits(merged), trained)
    try:
        merged.save_pretrained(case.out)
    except Exception as error:  # the merge is judged even where nothing can be saved
        return [*merge_faults(off), f"save_pretrained: {reason_of(error)}"]
    model, faults = load(case.out)
    return [*merge_faults(off), *faults, *judge(model, case.tiny.blocks, trained, len(ORDER))]


def merge_faults(off: float) -> list[str]:
    return [f"logits off by {off:.2g} of the largest after merging"] if off > TOLERANCE else []


def replicated(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    lora = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": list(case.tiny.lora)}
    config = LoraConfig(layer_replication=RANGES, **lora)
    return get_peft_model(load(case.source)[0], config).eval()


def attempt(contender: Callable[[Case], list[str]], case: Case) -> Outcome:
    """Let a contender deepen a model; return `right`, `wrong` or `fails`, with the reason."""
    shutil.rmtree(case.out, ignore_errors=True)
    try:
        faults = contender(case)
    except Exception as error:  # whatever a contender raises is its row
        return {"outcome": "fails", "reason": reason_of(error)}
    return {"outcome": "wrong" if faults else "right", "reason": "; ".join(faults)}


def reason_of(error: Exception) -> str:
    """Return the last error named, which in a child's output is the one that ended it."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    named = [i for i, line in enumerate(lines) if re.match(ERROR, line)]
    return " ".join(" ".join(lines[named[-1] :]).split()).replace(str(WORK), "…")[:KEPT]


def prepare(name: str) -> Case:
    """Save the model, and compute what the deepened one must give."""
    source = WORK / name
    save_tiny(name, source)
    tiny = MODELS[name]
    times = Counter(ORDER)
    base = logits(load(source)[0])
    wanted = logits_of_repeated(
        load(source)[0], tiny.blocks, [times[block] for block in range(BLOCKS)]
    )
    assert difference(base, wanted) > 100 * TOLERANCE, "the test could not tell them apart"
    return Case(name, tiny, source, WORK / "out", wanted)


def describe(outcomes: Outcomes) -> str:
    contenders = list(next(iter(outcomes.values())))
    rows = [[name, *map(cell, found.values())] for name, found in outcomes.items()]
    for word in ("right", "wrong", "fails"):
        counts = (sum(f[c]["outcome"] == word for f in outcomes.values()) for c in contenders)
        rows.append([f"{word}, of {len(outcomes)}", *counts])
    return table(["type", *contenders], rows)


def cell(found: Outcome) -> str:
    reason = found["reason"].replace("|", "\\|")
    short = reason if len(reason) <= REASON else f"{reason[:REASON]}…"
    return f"{found['outcome']}: {short}" if short else found["outcome"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=list(MODELS), metavar="TYPE")
    parser.add_argument("--dry", action="store_true", help="write no results")
    add_option(parser)
    given = parser.parse_args()
    python = find_mergekit(given.mergekit)
    contenders = {
        "`surgery` insert": by_surgery,
        "mergekit passthrough": lambda case: by_mergekit(case, python),
        "PEFT `layer_replication`": by_peft,
        "PEFT, trained, merged, saved": by_peft_merged,
    }
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    outcomes: Outcomes = {}
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    try:
        for name in given.types:
            case = prepare(name)
            outcomes[name] = {who: attempt(how, case) for who, how in contenders.items()}
            print(name, outcomes[name], flush=True)
        peer = versions(python)
        text = f"mergekit {peer['mergekit']}.\n\n{describe(outcomes)}"
        result = {"mergekit": peer, "order": ORDER, "tolerance": TOLERANCE, "outcomes": outcomes}
        print(text) if given.dry else write_results(HERE, result, text)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
