"""Evaluation: perplexity and accuracy against plain loops, on both paths, and what is left."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import perturbed, save_tiny
from tiny_llava import color_question, save_llava, tokenizer, write_images, write_lines

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_adapter, load_base, save_adapter, write_adapter
from surgery.data.base import Record, RecordLocation, Turn
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.evaluation.evaluate import Evaluation, evaluate_adapter
from surgery.evaluation.predictions import normalized
from surgery.evaluation.questions import asked_of
from surgery.export.export import export_adapter
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe

TEXTS = ("A list can be changed in place. " * 5, "The surgeon washed her hands.")
LENGTH = 24


@pytest.fixture(scope="module")
def multimodal_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava") / "base")


def adapter(base: Path, out: Path, *words: str, name: str = "genieblue_skip") -> Path:
    plan = plan_recipe(load_recipe(name, [f"model={base}", *words]), weights=True)
    save_adapter(plan, perturbed(apply_plan(plan, load_base(str(base)))), out)
    return out


@torch.no_grad()
def plain_perplexity(model: Any) -> float:
    """One block after the other, one token after the other."""
    losses: list[float] = []
    for text in TEXTS:
        ids = [*tokenizer()(text)["input_ids"], tokenizer().eos_token_id]
        for first in range(0, len(ids), LENGTH):
            part = ids[first : first + LENGTH]
            logits = model(input_ids=torch.tensor([part])).logits[0].log_softmax(-1)
            losses += [-float(logits[i, part[i + 1]]) for i in range(len(part) - 1)]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("name", ["genieblue_skip", "cogvlm_skip"])
def test_perplexity_on_both_paths(name: str, multimodal_base: Path, tmp_path: Path) -> None:
    folder = adapter(multimodal_base, tmp_path / "a", name=name)
    text = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    found = evaluate_adapter(folder, text=text, length=LENGTH)
    base = plain_perplexity(load_base(str(multimodal_base)).eval())
    shared = plain_perplexity(load_adapter(folder).eval())
    assert found.perplexity["base"] == pytest.approx(base, rel=1e-4)
    assert found.perplexity["shared"] == pytest.approx(shared, rel=1e-4)
    assert found.perplexity["text"] == found.perplexity["base"]
    assert found.retention()["perplexity.text"] == 100.0
    assert found.retention()["perplexity.shared"] == pytest.approx(100 * base / shared, rel=1e-4)


def test_base_that_trains_has_no_text_path(multimodal_base: Path, tmp_path: Path) -> None:
    folder = adapter(multimodal_base, tmp_path / "a", name="full_finetune")
    text = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    found = evaluate_adapter(folder, text=text, length=LENGTH)
    assert list(found.perplexity) == ["base", "shared"]
    base = plain_perplexity(load_base(str(multimodal_base)).eval())
    assert found.perplexity["base"] == pytest.approx(base, rel=1e-4)


@pytest.mark.parametrize("name", ["genieblue_skip", "cogvlm_skip", "wings"])
def test_answers_are_compared_with_what_is_generated(
    name: str, multimodal_base: Path, tmp_path: Path
) -> None:
    """The right answers are those that the model itself gives, but for one."""
    names = [name.partition(".")[0] for name in write_images(tmp_path)]
    words = ("rank=4",) if name == "wings" else ()
    folder = adapter(multimodal_base, tmp_path / "a", *words, name=name)
    answers = answers_of(folder, names, tmp_path)
    answers[1] = "something else"
    records = [color_question(name) for name in names]
    for record, answer in zip(records, answers, strict=True):
        record["conversations"][1]["value"] = answer.strip() or "nothing"
    right = sum(bool(answer.strip()) for answer in answers) - 1
    questions = write_lines(tmp_path / "q.jsonl", records)
    file = tmp_path / "said.jsonl"
    found = evaluate_adapter(folder, questions=questions, new_tokens=6, predictions=str(file))
    assert found.accuracy == {"shared": pytest.approx(right / 3)}
    assert found.answers == 3
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines == [asdict(one) for one in found.predictions]
    assert [(one["path"], one["line"], one["images"]) for one in lines] == [
        ("shared", line, 1) for line in (1, 2, 3)
    ]
    assert lines[1]["wanted"] == "something else"
    assert "color" in lines[1]["question"]
    assert "<image>" not in lines[1]["question"]
    assert [one["right"] for one in lines] == [
        bool(answers[0].strip()),
        False,
        bool(answers[2].strip()),
    ]


def test_predictions_replace_nothing_that_is_read(multimodal_base: Path, tmp_path: Path) -> None:
    folder = adapter(multimodal_base, tmp_path / "a", name="lora")
    questions = write_lines(tmp_path / "q.jsonl", [color_question("red")])
    for out in (questions, folder / "plan.json", folder / "said.jsonl"):
        with pytest.raises(SurgeryError) as caught:
            evaluate_adapter(folder, questions=questions, predictions=out)
        assert caught.value.diagnostics[0].code == "A306"


def test_a_text_adapter_is_not_asked_about_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    plan = plan_recipe(load_recipe("lora", ["rank=2"]), weights=True)
    write_adapter(plan, tmp_path / "a")
    questions = write_lines(tmp_path / "q.jsonl", [color_question("red")])
    with pytest.raises(SurgeryError) as caught:
        evaluate_adapter(tmp_path / "a", questions=questions)
    assert caught.value.diagnostics[0].code == "D107"


@torch.no_grad()
def answers_of(folder: Path, names: list[str], images: Path) -> list[str]:
    from PIL import Image
    from tiny_llava import processor

    model: Any = load_adapter(folder).eval()
    answers = []
    for name in names:
        prompt = "<|bos|>User: <|image|>\nWhat color is it?\nAssistant:"
        image = Image.open(images / f"{name}.png")
        inputs = processor()(
            text=[prompt], images=[image], add_special_tokens=False, return_tensors="pt"
        )
        out = model.generate(**inputs, do_sample=False, max_new_tokens=6, pad_token_id=0)
        answers.append(
            tokenizer().decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        )
    return answers


def test_each_answer_is_asked_with_the_turns_before() -> None:
    words = ("user", "<image>a", "assistant", "b", "user", "<image>c", "assistant", "d")
    turns = tuple(Turn(words[i], words[i + 1]) for i in range(0, 8, 2))  # type: ignore[arg-type]
    images = (Path("1"), Path("2"))
    asked = list(asked_of(Record(RecordLocation(Path("x"), 1), turns, images)))
    assert [record.turns[at].text for record, at in asked] == ["b", "d"]
    assert [at for _, at in asked] == [1, 3]
    assert [record.images_before(at) for record, at in asked] == [images[:1], images]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (" Yes.", "yes", True),
        ("3  knives", "3 knives!", True),
        ("3", "4", False),
        ("a b", "ab", False),
    ],
)
def test_normalisation(first: str, second: str, same: bool) -> None:
    assert (normalized(first) == normalized(second)) == same


def test_retention_against_another_adapter(multimodal_base: Path, tmp_path: Path) -> None:
    figures = {"base": 10.0, "shared": 20.0}, {"shared": 0.4, "base": 0.0}
    known = {"perplexity.shared": 15.0, "accuracy.shared": 0.5}
    found = Evaluation("a", "m", "r", figures[0], 5, figures[1], 3, known).retention()
    assert found == {"perplexity.shared": pytest.approx(75), "accuracy.shared": pytest.approx(80)}
    assert Evaluation("a", "m", "r", figures[0], 5, {}, 3, {}).retention() == {
        "perplexity.shared": 50.0
    }
    text = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    folder = adapter(multimodal_base, tmp_path / "a")
    first = evaluate_adapter(folder, text=text, length=LENGTH)
    (tmp_path / "first.json").write_text(json.dumps(first.document()))
    second = evaluate_adapter(folder, text=text, length=LENGTH, reference=tmp_path / "first.json")
    assert second.retention()["perplexity.shared"] == 100.0


def test_nothing_to_measure(multimodal_base: Path, tmp_path: Path) -> None:
    folder = adapter(multimodal_base, tmp_path / "a")
    with pytest.raises(SurgeryError) as caught:
        evaluate_adapter(folder)
    assert caught.value.diagnostics[0].code == "T113"


def test_exports_with_a_base_unshared_and_shared(multimodal_base: Path, tmp_path: Path) -> None:
    """Text keeps what the base has where it isn't shared, and loses it where it is."""
    folder = adapter(multimodal_base, tmp_path / "a")
    text = write_lines(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS])
    wanted = evaluate_adapter(folder, text=text, length=LENGTH).perplexity
    found = {}
    for form in ("unshared", "shared"):
        export_adapter(folder, tmp_path / form, base=form)
        found[form] = evaluate_adapter(tmp_path / form, text=text, length=LENGTH)
    assert found["unshared"].perplexity == pytest.approx(wanted, rel=1e-4)
    assert found["unshared"].retention()["perplexity.text"] == 100.0
    lost = found["shared"].perplexity
    assert lost["text"] == lost["shared"] == pytest.approx(wanted["shared"], rel=1e-4)
    assert lost["text"] != pytest.approx(wanted["text"], rel=1e-3)


@pytest.mark.slow
def test_graphs_are_not_evaluated(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    export_adapter(adapter(base, tmp_path / "a"), tmp_path / "out", to="onnx", context=64)
    with pytest.raises(SurgeryError, match="A606"):
        evaluate_adapter(tmp_path / "out", text=tmp_path / "none.txt")
