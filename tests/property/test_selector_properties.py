"""Shares of a depth: how many blocks, which, and that the words agree with one another."""

from fractions import Fraction
from math import floor

from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from surgery.operations.block_selector import Blocks, is_rest, pick_blocks

COUNTS = st.integers(1, 130)
PARTS = st.tuples(st.integers(1, 40), st.integers(1, 40)).filter(lambda part: part[0] <= part[1])

WORDS = st.sampled_from(("pre", "post", "skip"))


@given(count=COUNTS, part=PARTS)
def test_shares_pick_the_floor_of_the_depth(count, part):
    n, d = part
    wanted = floor(count * Fraction(n, d))
    picked = {word: pick_blocks(f"{word} {n}/{d}", count) for word in ("pre", "post", "skip")}
    for blocks in picked.values():
        assert len(blocks) == wanted
        assert list(blocks) == sorted(set(blocks))
        assert all(0 <= block < count for block in blocks)
    assert picked["pre"] == tuple(range(wanted))
    assert picked["post"] == tuple(range(count - wanted, count))


@given(count=COUNTS, part=PARTS)
def test_skip_takes_the_block_with_which_a_share_becomes_whole(count, part):
    n, d = part
    taken, walked = [], 0
    for block in range(count):  # walk n steps for each block; whoever passes a multiple of d
        walked += n
        if walked >= d:
            walked -= d
            taken.append(block)
    assert pick_blocks(f"skip {n}/{d}", count) == tuple(taken)


@given(count=COUNTS, step=st.integers(1, 40))
def test_every_k_is_skip_one_kth(count, step):
    every = pick_blocks(f"every {step}", count)
    assert every == pick_blocks(f"skip 1/{step}", count)
    assert every == pick_blocks(f"every {step} from {step - 1}", count)


@given(count=COUNTS, positions=st.lists(st.integers(-130, 130), max_size=8))
def test_positions_are_those_of_a_python_list(count, positions):
    assume(all(-count <= position < count for position in positions))
    blocks = list(range(count))
    wanted = sorted({blocks[position] for position in positions})
    assert list(pick_blocks(tuple(positions), count)) == wanted


@given(blocks_with=st.sets(st.integers(0, 129), min_size=1), part=PARTS, word=WORDS)
def test_of_a_kind_picks_as_if_only_those_blocks_were_there(blocks_with, part, word):
    n, d = part
    blocks = sorted(blocks_with)
    wanted = [blocks[i] for i in pick_blocks(f"{word} {n}/{d}", len(blocks))]
    assert list(pick_blocks(f"{word} {n}/{d} of mixer", 130, lambda kind: blocks)) == wanted


@given(
    count=COUNTS,
    selector=st.text(max_size=20)
    | st.text("0123456789/- everyskipostafrmln", max_size=16)
    | st.recursive(st.none() | st.integers() | st.floats(), st.lists, max_leaves=4),
)
def test_anything_else_is_refused_or_picks_blocks(count, selector):
    try:
        words = TypeAdapter(Blocks).validate_python(selector)
    except ValidationError:
        return
    assume(not is_rest(words))
    try:
        blocks = pick_blocks(words, count)
    except IndexError:
        return
    assert list(blocks) == sorted(set(blocks))
    assert all(0 <= block < count for block in blocks)
