"""Keys of records: what is honored, refused, or named as unused; and what is no record.

Each record stands for what tools of the field write: LLaVA, TRL, axolotl, LLaMA-Factory, ms-swift,
OpenAI, Mistral, and `datasets`, which fills columns that a row lacks with null.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llava import (
    COLORS,
    color_question,
    processor,
    tokenizer,
    write_images,
    write_lines,
)
from torch.utils.data import DataLoader

from surgery.data.base import Record
from surgery.data.collator import Collator
from surgery.data.encoder import IGNORED, Encoder
from surgery.data.file_reader import DataFile
from surgery.data.mixture import Mixture, make_order
from surgery.data.rows import Rows
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.recipe.training_schema import Source

ASK, SAY = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}
WHY, SO = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}
CHAT = {"messages": [ASK, SAY]}
LLAVA = {"conversations": [HUMAN, GPT]}
BOTH = pytest.mark.parametrize("record", [CHAT, LLAVA], ids=["messages", "conversations"])


def data_file(folder: Path, *records: Any, bad: Any = "error") -> DataFile:
    write_images(folder)
    return DataFile(Source(file=str(write_lines(folder / "a.jsonl", records))), bad)


def read(folder: Path, record: Any) -> Record:
    found: Record = data_file(folder, record)[0]
    return found


def refused(folder: Path, record: Any) -> str:
    """The code and the sentence of the one thing that is said of a record."""
    with pytest.raises(SurgeryError) as caught:
        data_file(folder, record)
    (found,) = caught.value.diagnostics
    assert found.what.startswith(f"{folder / 'a.jsonl'}:1: ")
    with pytest.raises(SurgeryError) as skipped:
        data_file(folder, record, bad="skip")
    assert [d.code for d in skipped.value.diagnostics] == ["D109"]
    assert len(data_file(folder, CHAT, record, bad="skip")) == 1
    return f"{found.code} {found.what} {found.why}"


def learned(folder: Path, record: Any) -> list[str]:
    """The answers that are learned of each row."""
    rows = Rows(data_file(folder, record), Encoder(tokenizer(), 64))
    kept = (row.labels[row.labels != IGNORED] for row in rows)
    return [tokenizer().decode(labels, skip_special_tokens=True).strip() for labels in kept]


# --- images ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "keys",
    [
        {"image": None, "images": ["red.png"]},
        {"image": "", "images": ["red.png"]},
        {"image": [], "images": "red.png"},
        {"image": "red.png", "images": None},
        {"image": "red.png", "images": []},
        {"image": "red.png", "images": ["red.png"]},
        {"images": ["red.png", None, ""]},
        {"image": {"path": "red.png", "bytes": None}},
        {"images": [{"path": "red.png", "bytes": None}]},
    ],
    ids=json.dumps,
)
def test_a_record_shows_the_images_that_it_names(record: Any, keys: Any, tmp_path: Path) -> None:
    found = read(tmp_path, {**record, **keys})
    assert found.images == (tmp_path / "red.png",)
    assert found.turns[0].text == "<image>\nWhat?"


@BOTH
@pytest.mark.parametrize(
    "keys", [{"image": ""}, {"image": None}, {"images": []}, {"images": [None]}, {"image": [""]}]
)
def test_empty_names_are_no_image(record: Any, keys: Any, tmp_path: Path) -> None:
    assert read(tmp_path, {**record, **keys}).images == ()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "red.png", "text": None, "path": None},
        {"type": "image_url", "image_url": {"url": "red.png"}},
        {"type": "image", "image": {"path": "red.png", "bytes": None}},
    ],
)
def test_images_of_parts(part: Any, tmp_path: Path) -> None:
    content = [part, {"type": "text", "text": "What?", "image": None}]
    found = read(tmp_path, {"messages": [{"role": "user", "content": content}, SAY]})
    assert found.images == (tmp_path / "red.png",)
    assert found.unused == ()


SEEN_OTHERWISE = {
    "two lists": {**CHAT, "image": "red.png", "images": ["blue.png"]},
    "inside and beside": {
        "messages": [{"role": "user", "content": [{"type": "image", "path": "red.png"}]}, SAY],
        "images": ["blue.png"],
    },
    "bytes": {**CHAT, "image": {"path": "red.png", "bytes": "iVBOR"}},
}


@pytest.mark.parametrize("record", SEEN_OTHERWISE.values(), ids=SEEN_OTHERWISE)
def test_images_that_contradict_each_other(record: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, record).startswith("D102")


def test_an_image_and_nobody_to_see_it(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Describe."}, SAY]
    assert refused(tmp_path, {"messages": turns, "image": "red.png"}).startswith("D107")


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + ".png", "a\0b.png", "sub/", "pipe", "."])
def test_names_that_are_no_image_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = refused(tmp_path, {**CHAT, "image": name})
    assert found.startswith("D105")
    assert len(found) < 250 + len(str(tmp_path)) * 2


# --- what changes the meaning ---------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_key_next_to_the_turns_comes_first(record: Any, key: str, tmp_path: Path) -> None:
    found = read(tmp_path, {**record, key: "Be short."})
    assert (found.turns[0].role, found.turns[0].text) == ("system", "Be short.")
    again = {"messages": [{"role": "system", "content": "Be short."}, ASK, SAY], key: "Be short."}
    assert read(tmp_path, again).turns == found.turns
    assert refused(tmp_path, {**again, key: "Be long."}).startswith("D102")


@pytest.mark.parametrize(
    "flag", [{"loss": False}, {"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": 0}]
)
def test_answers_that_are_not_to_be_learned(flag: Any, tmp_path: Path) -> None:
    assert learned(tmp_path, {"messages": [ASK, {**SAY, **flag}, WHY, SO]}) == ["So."]
    assert learned(tmp_path, {"messages": [ASK, SAY, WHY, {**SO, **flag}]}) == ["That."]
    turns = [HUMAN, {**GPT, **flag}, {"from": "human", "value": "Why?"}, GPT]
    assert learned(tmp_path, {"conversations": turns}) == ["That."]
    assert refused(tmp_path, {"messages": [ASK, {**SAY, **flag}]}).startswith("D104")


def test_an_answer_that_is_to_be_learned_is(tmp_path: Path) -> None:
    found = {**SAY, "loss": True, "weight": 1, "train": None}
    assert learned(tmp_path, {"messages": [{**ASK, "weight": 0}, found]}) == ["That."]


@pytest.mark.parametrize("flag", [{"weight": 0.5}, {"weight": -1}, {"loss": "false"}])
def test_an_answer_is_learned_or_not(flag: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, {"messages": [ASK, {**SAY, **flag}]}).startswith("D115")


TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up."}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])], ids=["list", "text"])
def test_tools_are_passed_to_the_template(tools: Any, tmp_path: Path) -> None:
    assert read(tmp_path, {**CHAT, "tools": tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [3, "x", "[" * 99999, ["look_up"], [{"type": "function"}]])
def test_tools_that_are_none(tools: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, {**CHAT, "tools": tools}).startswith("D102")


def turn(**keys: Any) -> dict[str, Any]:
    return {"messages": [ASK, {**SAY, **keys}]}


NOT_HONORED = {
    "video": {**CHAT, "video": "a.mp4"},
    "videos": {**LLAVA, "videos": ["a.mp4"]},
    "audio": {**CHAT, "audio": "a.wav"},
    "image beside text": {"text": "A square.", "image": "red.png"},
    "system beside text": {"text": "A square.", "system": "Be short."},
    "tool_calls": turn(tool_calls=[{"function": {"name": "look_up"}}]),
    "function_call": turn(function_call={"name": "look_up"}),
    "reasoning_content": turn(reasoning_content="Hm."),
    "image in a turn": {"conversations": [{**HUMAN, "image": "red.png"}, GPT]},
    "video in a part": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "video": "b"}]},
            SAY,
        ]
    },
}


@pytest.mark.parametrize("record", NOT_HONORED.values(), ids=NOT_HONORED)
def test_keys_that_cannot_be_honored_are_refused(record: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, record).startswith("D115")


@pytest.mark.parametrize(
    "record", [{**CHAT, **LLAVA}, {**CHAT, "text": "a"}, {**LLAVA, "text": "a"}]
)
def test_a_record_of_two_forms_is_of_none(record: Any, tmp_path: Path) -> None:
    assert refused(tmp_path, record).startswith("D102")


NULLS = {
    "image": None, "images": None, "video": None, "system": None, "system_prompt": "", "tools": [],
    "text": None, "source": None, "audio": "", "metadata": {},
}  # fmt: skip


@BOTH
def test_columns_that_a_table_filled_are_absent(record: Any, tmp_path: Path) -> None:
    other = "conversations" if "messages" in record else "messages"
    found = data_file(tmp_path, {**NULLS, other: None, **record}, {"text": "a", other: None})
    assert found[0].turns == read(tmp_path, record).turns
    assert found.notes == []
    filled = {**SAY, "tool_calls": None, "name": None, "weight": None, "reasoning_content": ""}
    assert read(tmp_path, {"messages": [ASK, filled]}).unused == ()


def test_keys_that_are_not_used_are_named_once(tmp_path: Path) -> None:
    asked = {**ASK, "name": "Ann", "weight": 1}
    first = {"id": 3, "source": "web", "messages": [asked, {**SAY, "name": "Bot"}]}
    second = {
        **first,
        "score": 0.5,
        "messages": [{"role": "assistant", "content": "Hi."}, ASK, SAY],
    }
    (found,) = data_file(tmp_path, CHAT, first, second, first).notes
    assert (found.code, found.severity) == ("D117", "warning")
    for named in ("`source` (line 2)", "`name` (line 2)", "`score` (line 3)"):
        assert found.what.count(named) == 1
    assert "`weight` of what is no answer (line 2)" in found.what
    assert "an answer that a conversation begins with (line 3)" in found.what
    assert "`id`" not in found.what


# --- what is no record, and no file ---------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"text": "\ud83d"},
        {**CHAT, "image": "\udcff.png"},
        {**CHAT, "\ud800": 1},
        '{"a":' * 99999,
        '{"text": ' + "9" * 5000 + "}",
        '"text"',
        "null",
        "3",
    ],
    ids=range(8),
)
def test_lines_that_are_no_record(record: Any, tmp_path: Path) -> None:
    found = refused(tmp_path, record)
    assert found.startswith("D102")
    found.encode()


def test_a_line_that_is_no_json_says_why(tmp_path: Path) -> None:
    assert "is not JSON: Expecting" in refused(tmp_path, '{"text": }')


def unreadable(file: Path) -> str:
    with pytest.raises(SurgeryError) as caught:
        DataFile(Source(file=str(file)))
    (found,) = caught.value.diagnostics
    assert found.code == "D101"
    return found.why


def test_a_pipe_and_a_device_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    for file in (tmp_path / "a.jsonl", Path("/dev/zero"), Path("/dev/null")):
        assert "pipe or a device" in unreadable(file)
    assert unreadable(tmp_path / ("n" * 300))
    assert unreadable(tmp_path / "a\0b")


def test_records_of_an_array_on_one_line_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([LLAVA, {"image": 3}, LLAVA, {"id": 4}]))
    with pytest.raises(SurgeryError) as caught:
        DataFile(Source(file=str(tmp_path / "a.json")))
    told = [diagnostic.what.partition(": ")[0] for diagnostic in caught.value.diagnostics]
    assert told == [f"{tmp_path}/a.json:1, record {n}" for n in (2, 4)]


def test_records_behind_an_array_are_not_lost(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"}]\n[{"text": "b"}]\n')
    assert "more follows" in unreadable(tmp_path / "a.json")


# --- errors while a row is encoded ----------------------------------------------------------------


class Failing:
    """A processor that raises for one picture, as some do for what they can't resize."""

    def __init__(self, color: tuple[int, int, int]) -> None:
        self._real, self._color = processor(), color
        self.image_processor, self.tokenizer = self._real.image_processor, self._real.tokenizer
        self.image_token, self.chat_template = self._real.image_token, None

    def __call__(self, images: list[Any], **how: Any) -> Any:
        if any(image.getpixel((0, 0)) == self._color for image in images):
            raise KeyError("shortest_edge")
        return self._real(images=images, **how)


def rows_of(folder: Path, bad: Any, *records: Any) -> Rows:
    return Rows(data_file(folder, *records, bad=bad), Encoder(Failing(COLORS["green"]), 64), bad)


def test_whatever_a_processor_raises_has_a_place(tmp_path: Path) -> None:
    records = [color_question("red"), color_question("green")]
    rows = rows_of(tmp_path, "error", *records)
    assert len(rows[0].ids)
    with pytest.raises(SurgeryError) as caught:
        rows[1]
    (found,) = caught.value.diagnostics
    assert (found.code, "KeyError: 'shortest_edge'" in found.why) == ("D116", True)
    assert found.what.startswith(f"{tmp_path / 'a.jsonl'}:2: ")
    skipping = rows_of(tmp_path, "skip", *records)
    assert skipping[1].ids.tolist() == rows[0].ids.tolist()
    assert skipping.skipped == 1


@pytest.mark.parametrize("bad", ["error", "skip"])
def test_a_bad_row_in_a_worker_of_a_loader_is_named(bad: Any, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, bad, color_question("green"), color_question("green"))
    mixture = Mixture([rows], make_order([2], np.array([2]), 2, 0))
    loader = DataLoader(mixture, collate_fn=Collator(0), num_workers=1)
    with pytest.raises(SurgeryError) as caught, mixture.named_errors():
        list(loader)
    (found,) = caught.value.diagnostics
    assert found.code == ("D116" if bad == "error" else "D109")
    assert str(caught.value).startswith("error[D1")
