"""Words that pick blocks, by a table: the paper's placements, the formula, and what is refused."""

import pytest
from pydantic import TypeAdapter, ValidationError

from surgery.operations.block_selector import GRAMMAR, Blocks, is_rest, pick_blocks

BLOCKS = TypeAdapter(Blocks)
PICKED = [
    ("all", 4, [0, 1, 2, 3]),
    ("none", 4, []),
    ("pre 1/4", 36, range(9)),
    ("post 1/4", 36, range(27, 36)),
    ("skip 1/4", 36, range(3, 36, 4)),
    ("every 4", 36, range(3, 36, 4)),
    ("every 4 from 0", 36, range(0, 36, 4)),
    ("every 1", 3, [0, 1, 2]),
    ("every 9", 4, []),
    ("every 2 from 9", 4, []),
    ("pre 1/4", 3, []),
    ("post 1/4", 3, []),
    ("skip 1/4", 3, []),
    ("pre 1/4", 30, range(7)),
    ("skip 1/4", 30, range(3, 30, 4)),
    ("skip 1/3", 10, [2, 5, 8]),
    ("skip 2/3", 7, [1, 2, 4, 5]),
    ("skip 1/1", 3, [0, 1, 2]),
    ("pre 3/3", 3, [0, 1, 2]),
    ("4-6", 8, [4, 5, 6]),
    ("7-7", 8, [7]),
    ((0, 5, -1), 8, [0, 5, 7]),
    ((-1, 7, 7), 8, [7]),
    ((-8,), 8, [0]),
    ((), 8, []),
]
HYBRID = {"attention": [2, 5, 8, 11], "mixer": [0, 1, 3, 4, 6, 7, 9, 10], "mlp": range(12)}
PICKED_OF_A_KIND = [
    ("all of attention", [2, 5, 8, 11]),
    ("all of mlp", range(12)),
    ("none of attention", []),
    ("skip 1/4 of attention", [11]),
    ("skip 1/2 of attention", [5, 11]),
    ("pre 1/4 of mixer", [0, 1]),
    ("post 1/4 of mixer", [9, 10]),
    ("every 2 of attention", [5, 11]),
    ("every 2 from 0 of attention", [2, 8]),
    ("3-8 of attention", [5, 8]),
    ("3-4 of attention", []),
    ("rest of mixer", [0, 1, 3, 4, 6, 7, 9, 10]),
]
REFUSED = [
    ("of attention", "is not a block selector"),
    ("skip 1/4 of", "is not a block selector"),
    ("skip 1/4 of all of attention", "is not a block selector"),
    ("some of attention", "is not a block selector"),
    ("skip 5/4 of attention", "5/4 is not a fraction above 0 and up to 1"),
    ("", "is not a block selector"),
    ("skip", "is not a block selector"),
    ("skip 1 / 4", "is not a block selector"),
    ("skip 1/4 1/4", "is not a block selector"),
    ("Skip 1/4", "is not a block selector"),
    ("pre ١/٤", "is not a block selector"),
    ("skip ¼", "is not a block selector"),
    ("0-" + "9" * 5000, "is not a block selector"),
    ("pre 5/4", "5/4 is not a fraction above 0 and up to 1"),
    ("pre 0/4", "0/4 is not a fraction above 0 and up to 1"),
    ("skip 1/0", "1/0 is not a fraction above 0 and up to 1"),
    ("every 0", "every 0 picks nothing"),
    ("7-3", "the range 7-3 runs backwards"),
    (3, "a single block is written as a list: [3]"),
    (None, "an empty value is not a block selector"),
    ({"a": 1}, "is not a block selector"),
    (True, "True is not a block selector"),
    ([1, "a"], "an index is a whole number, and 'a' is none"),
    ([1, 2.0], "2.0 is none"),
    ([True], "True is none"),
]


@pytest.mark.parametrize(("selector", "count", "picked"), PICKED)
def test_selector_picks_blocks(selector, count, picked):
    assert pick_blocks(selector, count) == tuple(picked)


@pytest.mark.parametrize(("selector", "picked"), PICKED_OF_A_KIND)
def test_selector_picks_among_the_blocks_that_have_a_kind(selector, picked):
    words = BLOCKS.validate_python(selector)
    assert pick_blocks(words, 12, HYBRID.__getitem__) == tuple(picked)


def test_kind_that_no_block_has_is_refused():
    with pytest.raises(LookupError, match="no block has router"):
        pick_blocks("every 2 of router", 12, lambda word: HYBRID.get(word, []))


def test_range_of_a_kind_must_still_be_in_the_model():
    with pytest.raises(IndexError, match="no block 12: the model has blocks 0 to 11"):
        pick_blocks("3-12 of attention", 12, HYBRID.__getitem__)


def test_rest_of_a_kind_is_a_rest():
    assert is_rest("rest")
    assert is_rest("rest of mixer")
    assert not is_rest("all of mixer")
    assert not is_rest((0, 1))


@pytest.mark.parametrize(("selector", "fault"), REFUSED)
def test_selector_is_refused_with_a_sentence(selector, fault):
    with pytest.raises(ValidationError) as caught:
        BLOCKS.validate_python(selector)
    (error,) = caught.value.errors()
    assert error["type"] == "selector"
    assert fault in error["msg"]


@pytest.mark.parametrize(
    ("selector", "first"), [((0, 4), 4), ((-5,), -5), ("2-9", 4), ("0-999999999", 4)]
)
def test_position_outside_the_model_is_refused(selector, first):
    with pytest.raises(IndexError, match=f"no block {first}: the model has blocks 0 to 3"):
        pick_blocks(selector, 4)


def test_spaces_are_evened_out_and_lists_become_tuples():
    assert BLOCKS.validate_python("  skip   1/4 ") == "skip 1/4"
    assert BLOCKS.validate_python(" rest ") == "rest"
    assert BLOCKS.validate_python([0, -1]) == (0, -1)
    assert BLOCKS.validate_json("[0, -1]") == (0, -1)


def test_grammar_names_every_form():
    words = "all none rest pre post skip every from i-j of"
    assert all(word in GRAMMAR for word in words.split())
