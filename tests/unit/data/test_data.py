"""Data for training: every form of a record, what is learned of it, what is wrong, and the order.

Token ids and labels are compared with those of texts that the test writes out itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava import (
    COLORS,
    IMAGE_TOKENS,
    color_question,
    processor,
    tokenizer,
    write_images,
    write_lines,
)

from surgery.data.base import Turn
from surgery.data.collator import Collator
from surgery.data.encoder import IGNORED, Encoder, Row
from surgery.data.file_reader import DataFile
from surgery.data.mixture import Mixture, epoch_sizes, make_order, mix
from surgery.data.packing import pack
from surgery.data.rows import Rows
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.recipe.training_schema import Source, Stage

ASK, ANSWER = Turn("user", "What?"), Turn("assistant", "That.")
LLAVA = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]}
CHAT = {
    "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
}
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def data_file(folder: Path, *records: Any, bad: Any = "error", name: str = "a.jsonl") -> DataFile:
    return DataFile(Source(file=str(write_lines(folder / name, records))), bad)


def codes(error: Any) -> list[str]:
    return [found.code for found in error.value.diagnostics]


def refused(folder: Path, *records: Any) -> str:
    with pytest.raises(SurgeryError) as caught:
        data_file(folder, *records)
    return str(caught.value)


def ids(text: str) -> list[int]:
    found: list[int] = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


def learned(row: Row) -> list[int]:
    return row.labels[row.labels != IGNORED].tolist()


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [LLAVA, CHAT])
def test_both_conventions_mean_the_same_turns(record: Any, tmp_path: Path) -> None:
    assert data_file(tmp_path, record)[0].turns == (ASK, ANSWER)


def test_parts_of_a_message_are_its_text_and_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    parts = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What?"}]
    content = {"messages": [{"role": "user", "content": parts}, CHAT["messages"][1]]}
    record = data_file(tmp_path, content)[0]
    assert record.turns[0].text == "<image>\nWhat?"
    assert record.images == (tmp_path / "red.png",)


def test_images_without_placeholder_go_first(tmp_path: Path) -> None:
    write_images(tmp_path)
    record = data_file(tmp_path, {**LLAVA, "image": ["red.png", "blue.png"]})[0]
    assert record.turns[0].text == "<image>\n<image>\nWhat?"


def test_array_and_lines_give_the_same_records(tmp_path: Path) -> None:
    records = [{**LLAVA, "id": "ä"}, {"text": "ö"}, CHAT]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1, ensure_ascii=False))
    array = DataFile(Source(file=str(tmp_path / "a.json")))
    lines = data_file(tmp_path, *records)
    assert [(r.turns, r.text) for r in array] == [(r.turns, r.text) for r in lines]
    written = (tmp_path / "a.json").read_text().splitlines()
    assert [written[r.location.line - 1].strip()[:1] for r in array] == ["{"] * 3
    assert [r.location.line for r in lines] == [1, 2, 3]


def test_lines_are_found_again_behind_blank_and_wide_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\n{"text": "äöü"}\n\n{"text": "last"}\n', encoding="utf-8")
    found = DataFile(Source(file=str(file)))
    assert [(r.text, r.location.line) for r in found] == [("äöü", 2), ("last", 4)]


def test_plain_text_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert [r.text for r in DataFile(Source(file=str(tmp_path / "a.txt")))] == ["one\ntwo\n"]


# --- bad records ----------------------------------------------------------------------------------


def turns(*pairs: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": a, "value": b} for a, b in pairs], **more}


BAD = {
    "D102": [
        '{"a": 1}',
        "[1, 2]x",
        '{"conversations": 3}',
        '{"conversations": ["What?", "That."]}',
        '{"conversations": [{"from": "human", "value": 3}]}',
        '{"conversations": ["hello"]}',
        '{"conversations": [{"from": "human", "value": ["x"]}, {"from": "gpt", "value": "y"}]}',
        '{"text": ""}',
        '{"messages": [{"role": "user"}]}',
    ],
    "D103": [turns(("robot", "x"), ("gpt", "y")), {"messages": [{"role": "bot", "content": "x"}]}],
    "D104": [turns(("human", "x")), turns(("human", "x"), ("gpt", " ")), turns()],
    "D105": [{**LLAVA, "image": "gone.png"}],
    "D107": [
        turns(("human", "<image><image>"), ("gpt", "y"), image="red.png"),
        turns(("human", "x"), ("gpt", "<image>"), image="red.png"),
        turns(("human", "<image>"), ("gpt", "y")),
    ],
}


@pytest.mark.parametrize(("code", "record"), [(c, r) for c, rs in BAD.items() for r in rs])
def test_bad_record_is_named_with_file_and_line(code: str, record: Any, tmp_path: Path) -> None:
    write_images(tmp_path)
    found = refused(tmp_path, LLAVA, record)
    assert f"error[{code}]" in found
    assert f"{tmp_path / 'a.jsonl'}:2: " in found


@pytest.mark.parametrize("record", [r for rs in BAD.values() for r in rs])
def test_skipped_records_are_counted_and_the_rest_stays(record: Any, tmp_path: Path) -> None:
    write_images(tmp_path)
    file = data_file(tmp_path, LLAVA, record, CHAT, bad="skip")
    assert [r.location.line for r in file] == [1, 3]
    assert Rows(file, Encoder(tokenizer(), 64), "skip").skipped == 1


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('[{"text": "a"}, {"te')
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xe4\xe4 ")
    for name in ("gone.jsonl", "cut.json", "latin.txt", "."):
        with pytest.raises(SurgeryError) as caught:
            DataFile(Source(file=str(tmp_path / name)))
        assert codes(caught) == ["D101"]


def test_no_usable_record(tmp_path: Path) -> None:
    for records in ([], [BAD["D104"][0]]):
        with pytest.raises(SurgeryError) as caught:
            data_file(tmp_path, *records, bad="skip")
        assert codes(caught) == ["D109"]


def test_image_that_does_not_decode_is_an_error_or_left_out(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "red.png").write_bytes(b"no image")
    records = [color_question("red"), color_question("blue")]
    rows = Rows(data_file(tmp_path, *records), Encoder(processor(), 64))
    with pytest.raises(SurgeryError) as caught:
        rows[0]
    assert codes(caught) == ["D106"]
    skipping = Rows(data_file(tmp_path, *records), Encoder(processor(), 64), "skip")
    assert torch.equal(skipping[0].ids, rows[1].ids)
    assert skipping.skipped == 1


def test_all_images_bad(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "red.png").write_bytes(b"no image")
    rows = Rows(data_file(tmp_path, color_question("red")), Encoder(processor(), 64), "skip")
    with pytest.raises(SurgeryError) as caught:
        rows[0]
    assert codes(caught) == ["D109"]


def test_image_for_a_model_that_sees_none(tmp_path: Path) -> None:
    write_images(tmp_path)
    file = data_file(tmp_path, color_question("red"))
    with pytest.raises(SurgeryError) as caught:
        Rows(file, Encoder(tokenizer(), 64))[0]
    assert codes(caught) == ["D107"]


@pytest.mark.parametrize("length", [4, 6])
def test_more_tokens_than_the_context(length: int, tmp_path: Path) -> None:
    write_images(tmp_path)
    file = data_file(tmp_path, color_question("red"))
    with pytest.raises(SurgeryError) as caught:
        Rows(file, Encoder(processor(), length))[0]
    assert codes(caught) == ["D108"]


# --- tokens and labels ----------------------------------------------------------------------------


def test_only_answers_are_learned_with_the_plain_template(tmp_path: Path) -> None:
    more = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    system = [{"from": "system", "value": "Be short."}]
    content = {"conversations": [*system, *LLAVA["conversations"], *more]}
    row = Encoder(tokenizer(), 64).conversation(data_file(tmp_path, content)[0])
    chunks = [
        ("<|bos|>Be short.\n\nUser: What?\nAssistant:", False),
        (" That.<|endoftext|>\n", True),
        ("User: Why?\nAssistant:", False),
        (" So.<|endoftext|>\n", True),
    ]
    assert row.ids.tolist() == [i for text, _ in chunks for i in ids(text)]
    assert row.labels.tolist() == [
        i if answer else IGNORED for text, answer in chunks for i in ids(text)
    ]


def test_the_bases_own_template_is_used(tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = CHATML
    row = Encoder(own, 64).conversation(data_file(tmp_path, LLAVA)[0])
    assert own.decode(row.ids) == "<user>What?</>\n<assistant>That.</>\n"
    assert own.decode(learned(row)) == "That.</>\n"


def test_template_that_rewrites_turns_is_refused(tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(SurgeryError) as caught:
        Encoder(own, 64).conversation(data_file(tmp_path, LLAVA)[0])
    assert codes(caught) == ["D110"]


def test_image_becomes_its_tokens_and_pixels(tmp_path: Path) -> None:
    write_images(tmp_path)
    encoder = Encoder(processor(), 64)
    row = encoder.conversation(data_file(tmp_path, color_question("red"))[0])
    before = ids("<|bos|>User: ")
    assert row.ids[: len(before)].tolist() == before
    assert (row.ids == encoder.image_token).sum() == IMAGE_TOKENS
    assert tokenizer().decode(learned(row)) == " It is red.<|endoftext|>\n"
    assert row.images["pixel_values"].shape == (1, 3, 28, 28)


def test_row_is_cut_behind_its_images(tmp_path: Path) -> None:
    write_images(tmp_path)
    file = data_file(tmp_path, color_question("red"))
    full = Encoder(processor(), 64).conversation(file[0])
    cut = Encoder(processor(), len(full.ids) - 3).conversation(file[0])
    assert torch.equal(cut.ids, full.ids[:-3])
    assert torch.equal(cut.labels, full.labels[:-3])


def test_text_is_cut_into_blocks_that_lose_nothing(tmp_path: Path) -> None:
    text = "The surgeon washed her hands. " * 20
    rows = Rows(data_file(tmp_path, {"text": text}), Encoder(tokenizer(), 16))
    joined = torch.cat([row.ids for row in rows]).tolist()
    assert joined == [*tokenizer()(text)["input_ids"], tokenizer().eos_token_id]
    assert all(len(row.ids) <= 16 for row in rows)
    assert all(torch.equal(row.labels[1:], row.ids[1:]) for row in rows)


# --- batches --------------------------------------------------------------------------------------


def row_of(*tokens: int) -> Row:
    return Row(torch.tensor(tokens), torch.tensor([IGNORED, *tokens[1:]]))


def test_batch_is_padded_on_the_right() -> None:
    batch = Collator(pad_token_id=9)([[row_of(1, 2, 3)], [row_of(4, 5)]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "paths" not in batch


def test_packed_rows_restart_their_positions() -> None:
    batch = Collator(pad_token_id=9, packing=True)(
        [[row_of(1, 2, 3), row_of(4, 5)], [row_of(6, 7)]]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist()[0] == [IGNORED, 2, 3, IGNORED, 5]
    assert "attention_mask" not in batch


def test_rows_without_images_take_the_text_path_if_asked(tmp_path: Path) -> None:
    write_images(tmp_path)
    encoder = Encoder(processor(), 64)
    with_images, text_only = (
        encoder.conversation(data_file(tmp_path, c)[0])
        for c in (
            color_question("red"),
            LLAVA,
        )
    )
    locations = [[with_images], [text_only], [with_images]]
    batch = Collator(pad_token_id=0, by_path=True)(locations)
    assert batch["paths"] == ["multimodal", "text", "multimodal"]
    assert batch["pixel_values"].shape[0] == 2
    assert "paths" not in Collator(pad_token_id=0)(locations)


def test_parts_for_image_tokens_get_a_mask(tmp_path: Path) -> None:
    write_images(tmp_path)
    encoder = Encoder(processor(), 64)
    row = encoder.conversation(data_file(tmp_path, color_question("red"))[0])
    mask = Collator(0, image_token=encoder.image_token, is_routed=True)([[row]])["image_mask"]
    assert mask.sum() == IMAGE_TOKENS
    assert not Collator(0, is_routed=True)([[row_of(1, 2)]])["image_mask"].any()


def test_packing_fills_rows_in_order() -> None:
    assert pack([3, 4, 2, 9, 1], 9) == [(0, 3), (3, 4), (4, 5)]
    assert pack([], 9) == []
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    packs = pack(lengths, 64)
    assert [i for a, b in packs for i in range(a, b)] == list(range(200))
    assert all(sum(lengths[a:b]) <= 64 for a, b in packs)
    assert all(sum(lengths[a : b + 1]) > 64 for a, b in packs[:-1])


# --- order ----------------------------------------------------------------------------------------


class Sized(list[Any]):
    """So many rows, with or without images."""

    def __init__(self, count: int, has_images: bool) -> None:
        super().__init__([row_of(1, 2)] * count)
        self.has_images, self.skipped = has_images, 0


def test_every_row_comes_once_an_epoch() -> None:
    order = make_order([5, 3], np.array([5, 3]), 24, seed=1)
    for epoch in order.reshape(3, 8, 2).tolist():
        assert sorted(map(tuple, epoch)) == [(0, i) for i in range(5)] + [(1, i) for i in range(3)]
    assert order[:8].tolist() != order[8:16].tolist()


def test_a_longer_order_begins_with_the_shorter_one() -> None:
    short, long = (make_order([50, 30], np.array([25, 60]), rows, seed=2) for rows in (40, 400))
    assert short.tolist() == long[:40].tolist()
    other = make_order([50, 30], np.array([25, 60]), 40, seed=3)
    assert short.tolist() != other.tolist()


def test_half_weight_takes_the_other_half_next() -> None:
    order = make_order([10], np.array([5]), 10, seed=0)
    assert sorted(order[:, 1].tolist()) == list(range(10))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_text_mix_is_the_share_of_text(share: float) -> None:
    sources: Any = [Sized(300, True), Sized(70, False), Sized(30, False)]
    counts = epoch_sizes(sources, [1.0, 1.0, 1.0], share)
    assert counts[0] == 300
    assert counts[1:].sum() / counts.sum() == pytest.approx(share, abs=0.01)
    assert share == 0 or counts[1] / counts[2] == pytest.approx(7 / 3, rel=0.05)


def test_weights_are_passes() -> None:
    sources: Any = [Sized(10, True), Sized(8, False)]
    assert epoch_sizes(sources, [2.0, 0.5], None).tolist() == [20, 4]


@pytest.mark.parametrize("has_images", [True, False])
def test_text_mix_needs_both_kinds(has_images: bool) -> None:
    sources: Any = [Sized(10, has_images)]
    with pytest.raises(SurgeryError) as caught:
        epoch_sizes(sources, [1.0], 0.5)
    assert codes(caught) == ["D111"]


@pytest.mark.parametrize("packing", [False, True])
def test_mixture_has_the_rows_of_its_steps(packing: bool) -> None:
    sources: Any = [Sized(11, True)]
    stage = Stage(data="a", steps=5, batch=4, packing=packing, length=6)
    rows = mix(sources, stage, seed=0)
    assert len(rows) == 20
    assert {len(location) for location in rows} == {3 if packing else 1}


def test_epochs_give_the_steps() -> None:
    sources: Any = [Sized(11, True)]
    rows = mix(sources, Stage(data="a", epochs=2, batch=4), seed=0)
    assert len(rows) == 24


def test_mixture_ends(tmp_path: Path) -> None:
    rows = Rows(data_file(tmp_path, LLAVA, CHAT), Encoder(tokenizer(), 64))
    assert len(list(rows)) == 2
    assert len(list(Mixture([rows], make_order([2], np.array([2]), 3, 0)))) == 3
    assert set(COLORS) == {"red", "green", "blue"}
