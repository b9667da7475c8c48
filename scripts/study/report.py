"""The report: report.md, runs.csv, scores.json, plot.png, and index.html with all of it."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from study.paper import BLUELM, QWEN, Printed
from study.plot import draw
from study.score import Score
from study.summary import Row, in_doubt, summarise

FILES = ("report.md", "runs.csv", "scores.json", "plot.png", "index.html")
EXACT = 100.0
_STYLE = (
    "body{font:15px/1.5 system-ui;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def write_report(
    out: Path, scores: Sequence[Score], blind: Mapping[str, float], about: Sequence[str]
) -> None:
    """Write all files of the report.

    Args:
        out: the folder.
        scores: one for each run.
        blind: share of right answers without seeing, by kind.
        about: lines on how it was run.
    """
    rows = summarise(scores)
    text = markdown(rows, blind, about)
    (out / "report.md").write_text(text, encoding="utf-8")
    documents = [score.document() for score in scores]
    (out / "scores.json").write_text(json.dumps({"blind": blind, "runs": documents}, indent=1))
    _write_csv(out / "runs.csv", scores)
    draw(rows, out / "plot.png")
    (out / "index.html").write_text(_page(text, out / "plot.png"), encoding="utf-8")


def markdown(rows: Sequence[Row], blind: Mapping[str, float], about: Sequence[str]) -> str:
    """The report in Markdown, with a link to plot.png."""
    parts = [
        "# The study in small",
        "\n".join(f"- {line}" for line in about),
        "## Results",
        "Percent; mean over the seeds, and in brackets the lowest and the highest. Answers are "
        "the mean over the kinds of questions. Retention is of full fine-tuning's answers on the "
        "same data; text is the base's perplexity of held-out text divided by the recipe's, on "
        "the multimodal path (shared) and on the text path (non-shared).",
        _results(rows),
        "Behind it the paper's own figures (arXiv 2503.06019, tables 4 to 6; Wings: table 1), "
        "BlueLM-3B / Qwen2.5-3B, all of them with text mixed in; ? is not printed or not legible. "
        "Its text is a mean of benchmarks, not perplexity, so compare orders and not numbers.",
        _printed(rows),
        "![Learning curves, and answers against text](plot.png)",
        "## Answers by kind of question",
        _by_kind(rows, blind),
        "## What was seen",
        "\n".join(f"- {line}" for line in seen(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def seen(rows: Sequence[Row]) -> list[str]:
    """What the figures say, and where a ranking lies inside the spread of the seeds."""
    said = []
    for row in rows:
        if row.recipe in {"full_finetune", "wings"}:
            verb = "keeps" if row.shared.mean >= 100 else "loses language: it keeps"
            said.append(f"{row.name} {verb} {row.shared} % of the base's text (shared).")
    kept = [row.name for row in rows if set(row.text.values) == {EXACT}]
    if kept:
        said.append(f"Non-shared text is the base's to the last bit for {', '.join(kept)}.")
    plain = [row for row in rows if not row.mixed]
    ranked = sorted(plain, key=lambda row: -row.answers.mean)
    said.append(f"Answers, best first: {', '.join(f'{r.name} {r.answers}' for r in ranked)}.")
    if len(ranked[0].answers.values) < 2:
        said.append("One seed has no spread: this ranking is not evidence.")
    else:
        doubts = [f"{one.name} and {two.name}" for one, two in in_doubt(plain)]
        said.append(
            f"Inside the spread, so not decided: {'; '.join(doubts)}."
            if doubts
            else "No neighbors in this ranking lie inside each other's spread."
        )
    return said


def _results(rows: Sequence[Row]) -> str:
    head = ("recipe", "trainable", "answers", "retention", "text, shared", "text, non-shared")
    body = [
        (row.name, f"{row.trainable:,}", row.answers, row.retention, row.shared, row.text or "-")
        for row in rows
    ]
    return _table(head, body)


def _printed(rows: Sequence[Row]) -> str:
    head = ("recipe", "trainable, M", "score", "retention", "text, shared", "text, non-shared")
    fields = ("trainable", "score", "retention", "shared", "text")
    recipes = dict.fromkeys(row.recipe for row in rows)
    return _table(head, [(recipe, *(_both(recipe, name) for name in fields)) for recipe in recipes])


def _both(recipe: str, name: str) -> str:
    values = (getattr(base.get(recipe, Printed()), name) for base in (BLUELM, QWEN))
    return " / ".join("?" if value is None else f"{value:.2f}" for value in values)


def _by_kind(rows: Sequence[Row], blind: Mapping[str, float]) -> str:
    without = [f"{100 * share:.1f}" for share in blind.values()]
    average = f"{100 * sum(blind.values()) / len(blind):.1f}"
    body = [("without seeing", *without, average)]
    body += [(row.name, *(str(row.kinds[kind]) for kind in blind), row.answers) for row in rows]
    return _table(("recipe", *blind, "mean"), body)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) or '-' for cell in line)} |" for line in lines)


def _write_csv(file: Path, scores: Sequence[Score]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        kinds, paths = list(scores[0].by_kind), ("base", "shared", "text")
        head = ("recipe", "mixed", "seed", "trainable", "answers", *kinds)
        writer.writerow([*head, *(f"perplexity.{path}" for path in paths), "seconds"])
        for score in scores:
            row = (score.recipe, score.mixed, score.seed, score.trainable, score.answers)
            perplexities = (score.perplexity.get(path, "") for path in paths)
            writer.writerow([*row, *score.by_kind.values(), *perplexities, score.seconds])


def _page(text: str, plot: Path) -> str:
    """The Markdown as one HTML page that needs no other file."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(text)
    picture = base64.b64encode(plot.read_bytes()).decode()
    body = body.replace('src="plot.png"', f'src="data:image/png;base64,{picture}"')
    head = f'<meta charset="utf-8"><title>The study in small</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
