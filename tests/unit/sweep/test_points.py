"""The grid of a sweep: what its words mean, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.sweep.grid import (
    expand,
    grid_document,
    plan_points,
    read_point,
    read_recipes,
    refuse_code,
)


def words_of(recipes: list[str], *words: str) -> list[str]:
    return [" ".join((point.recipe, *point.overrides)) for point in expand(recipes, words)]


def codes(error: pytest.ExceptionInfo[SurgeryError]) -> list[str]:
    return [diagnostic.code for diagnostic in error.value.diagnostics]


def test_grid_is_the_product_in_typed_order() -> None:
    assert words_of(["genieblue_skip"], "placement=pre,post", "rank=4,8") == [
        "genieblue_skip placement=pre rank=4",
        "genieblue_skip placement=pre rank=8",
        "genieblue_skip placement=post rank=4",
        "genieblue_skip placement=post rank=8",
    ]
    assert [point.number for point in expand(["lora"], ["rank=4,8,16"])] == [0, 1, 2]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("rank=range(4,17,4)", ["4", "8", "12", "16"]),
        ("rank=choice(4,8)", ["4", "8"]),
        ("description='a,b',\"c=d\"", ["'a,b'", '"c=d"']),
        ("operations.adapters.blocks=[0,1],all", ["[0,1]", "all"]),
        ("model=a=b", ["a=b"]),
        ("rank=4", ["4"]),
    ],
)
def test_values_are_hydras(word: str, values: list[str]) -> None:
    key = word.partition("=")[0]
    assert words_of(["lora"], word) == [f"lora {key}={value}" for value in values]


def test_a_key_can_be_taken_out_and_the_last_of_two_wins() -> None:
    assert words_of(["lora"], "~description", "rank=2", "rank=4,8") == [
        "lora ~description rank=4",
        "lora ~description rank=8",
    ]


def test_recipe_without_a_knob_runs_once_and_says_so() -> None:
    points = expand(["genieblue_skip", "lora", "full_finetune"], ["placement=pre,post", "rank=4,8"])
    assert [point.recipe for point in points] == ["genieblue_skip"] * 4 + ["lora"] * 2 + [
        "full_finetune"
    ]
    assert points[4].overrides == ("rank=4",)
    assert points[4].notes == ("no knob `placement`",)
    assert points[6].notes == ("no knob `placement`", "no knob `rank`")


def test_knob_that_no_recipe_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(SurgeryError) as error:
        expand(["lora", "genieblue_skip"], ["rnk=4,8", "plcement=pre"])
    assert codes(error) == ["R109", "R109"]
    assert "none of the recipes has a field or knob `rnk`" in str(error.value)
    assert "did you mean `placement`?" in str(error.value)


def test_all_missing_recipes_are_named() -> None:
    with pytest.raises(SurgeryError) as error:
        expand(["lora", "lroa", "genieblue"], [])
    assert codes(error) == ["R112", "R112"]


def test_recipe_is_the_first_word_or_an_axis() -> None:
    assert read_recipes(["lora", "rank=4"]) == (["lora"], ["rank=4"])
    assert read_recipes(["rank=4", "recipe=lora,'my recipe.yaml'"]) == (
        ["lora", "my recipe.yaml"],
        ["rank=4"],
    )
    assert read_recipes(["recipe=lora"]) == (["lora"], [])


@pytest.mark.parametrize("words", [[], ["rank=4"], ["lora", "recipe=lora"], ["~description"]])
def test_recipe_is_named_exactly_once(words: list[str]) -> None:
    with pytest.raises(SurgeryError) as error:
        read_recipes(words)
    assert codes(error) == ["R112"]


@pytest.mark.parametrize(
    "word",
    [
        "_target_=os.system",
        "operations.x._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "operations.x={_target_: os.system}",
        "operations.x={a: {_partial_: true}}",
        "~hydra.launcher._target_",
    ],
)
def test_code_is_refused(word: str) -> None:
    with pytest.raises(SurgeryError) as error:
        refuse_code([word])
    assert codes(error) == ["R108"]


def test_a_path_may_look_like_code() -> None:
    refuse_code(["model=/data/_target_/x", "model=my_target_", "description=_args_ are fine"])


@pytest.mark.parametrize("word", ["rank=interval(1,2)", "rank=glob(*)"])
def test_values_that_cannot_be_listed_are_refused(word: str) -> None:
    with pytest.raises(SurgeryError) as error:
        expand(["lora"], [word])
    assert codes(error) == ["R110"]


def test_every_error_is_reported_once_with_its_grid_points() -> None:
    points = expand(["genieblue_skip"], ["rank=0,4", "placement=pre,mid"])
    with pytest.raises(SurgeryError) as error:
        plan_points(points)
    assert codes(error) == ["R103", "R106"]
    messages = [diagnostic.what for diagnostic in error.value.diagnostics]
    assert "in grid points 0 `genieblue_skip rank=0 placement=pre`, 1 `" in messages[0]
    assert "in grid points 1 `genieblue_skip rank=0 placement=mid`, 3 `" in messages[1]


def test_a_point_reads_back_as_the_recipe_that_was_planned(tmp_path: Path) -> None:
    points = expand(["genieblue_skip", "full_finetune"], ["placement=pre,post"])
    plans = plan_points(points)
    file = tmp_path / "points.json"
    file.write_text(grid_document(points, plans, "plan", trust_remote_code=True))
    for number, plan in enumerate(plans):
        entry, recipe, trusted = read_point(file, number)
        assert recipe.resolved() == plan.recipe.resolved()
        assert trusted
        assert entry["point"] == number
    assert json.loads(file.read_text())["job"] == "plan"
