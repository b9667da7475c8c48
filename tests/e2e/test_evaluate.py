"""`surgery evaluate` as a user runs it, and lm-evaluation-harness on both paths of an adapter."""

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import perturbed
from tiny_llava import write_lines

from surgery import cli as commands
from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, save_adapter
from surgery.model.source import find_model
from surgery.paths.switching import text_path
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe

TASK = """\
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    plan = plan_recipe(load_recipe("genieblue_skip"), weights=True)
    save_adapter(plan, perturbed(apply_plan(plan, load_base(str(home())))), folder)
    return folder


def home() -> Path:
    return find_model("builtin/tiny-qwen2").folder


def evaluate(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["surgery", "evaluate", *map(str, words)])
    commands.main()


def test_table_and_json_say_the_same(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    text = write_lines(tmp_path / "text.jsonl", [{"text": "A list can be changed in place."}])
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    questions = write_lines(tmp_path / "q.jsonl", [{"messages": turns}])
    words = (adapter, "--text", text, "--questions", questions, "--new-tokens", 3)
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, *words, "--format", "json")
    document = json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, *words)
    table = capsys.readouterr().out
    for value in document["perplexity"].values():
        assert f"{value:.3f}" in table
    assert document["perplexity"]["text"] == document["perplexity"]["base"]
    assert f"{document['retention']['perplexity.shared']:.2f} %" in table
    assert document["answers"] == 1


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm_eval is not installed")
def test_harness_sees_the_base_on_the_text_path(adapter: Path, tmp_path: Path) -> None:
    import peft

    order, words = random.Random(0), ("list", "tuple", "string", "class", "module", "import")
    rows = [
        {
            "question": f"The {order.choice(words)} of a",
            "choices": order.sample(words, 3),
            "answer": 0,
        }
        for _ in range(20)
    ]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "tiny.yaml").write_text(TASK.format(file=file))
    model: Any = load_adapter(adapter).eval()
    shared = likelihoods(model, tmp_path)
    with text_path(model):
        text = likelihoods(model, tmp_path)
    plain = peft.PeftModel.from_pretrained(load_base(str(home())), str(adapter)).eval()
    assert text == likelihoods(load_base(str(home())).eval(), tmp_path)
    assert shared == likelihoods(plain, tmp_path)
    assert shared != text


def likelihoods(model: Any, tasks: Path) -> list[Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    harness = HFLM(pretrained=model, tokenizer=str(home()))
    found = lm_eval.simple_evaluate(
        harness, tasks=["tiny"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    return [sample["resps"] for sample in found["samples"]["tiny"]]
