"""Data files with any mistakes: what comes out is rows, or a sentence that names the line."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_llava import processor, tokenizer, write_images

from fuzz.judge import inputs, refused
from fuzz.spoil import LONG, spoilt_bytes, spoilt_json
from surgery.data.encoder import Encoder
from surgery.data.file_reader import DataFile
from surgery.data.rows import Rows
from surgery.recipe.training_schema import Source

ASK, SAY = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}
PARTS = [{"type": "image", "image": "red.png"}, {"type": "text", "text": "What is it?"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
RECORDS = [
    {"text": "The surgeon washed her hands. " * 4},
    {"messages": [{"role": "system", "content": "Be short."}, ASK, SAY, ASK, SAY]},
    {"messages": [{"role": "user", "content": PARTS}, SAY]},
    {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, SAY]},
    {"image": "red.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}
    ]},
    {"images": ["red.png", "blue.png"], "conversations": [
        {"from": "human", "value": "<image><image>Which?"}, {"from": "gpt", "value": "Both."}
    ]},
    {"prompt": "What?", "completion": "That."},
    {"instruction": "Say it.", "input": "", "output": "It."},
]  # fmt: skip
_MEANT = """messages conversations conversation text image images video videos audio system tools
role content from value type image_url url tool_calls function arguments weight loss train user
assistant human gpt tool developer name id prompt completion chosen rejected instruction input
output <image> <|image|> red.png http://x/y.png data:image/png;base64,AAAA ../red.png file:///etc/passwd"""
WORDS = _MEANT.split()
FILES = itertools.count()


@pytest.fixture
def location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return place_in(tmp_path)


def place_in(folder):
    """A maker of the names of new files in a folder with pictures."""
    write_images(folder)
    return lambda suffix: folder / f"{next(FILES)}{suffix}"


@st.composite
def data_files(draw):
    """The suffix and the content of a file of some records, one or all of them spoilt."""
    if draw(st.integers(0, 3)) == 0:
        return ".json", draw(spoilt_json([RECORDS, RECORDS[:1], {"data": RECORDS}], WORDS))
    lines = draw(st.lists(spoilt_json(RECORDS, WORDS), min_size=1, max_size=3))
    good = json.dumps(draw(st.sampled_from(RECORDS))).encode()
    return ".jsonl", b"\n".join([good, *lines])


@given(
    data=data_files() | st.tuples(st.just(".txt"), st.text(max_size=99).flatmap(spoilt_bytes)),
    bad=st.sampled_from(["error", "skip"]),
    images=st.sampled_from(["", ".", "nowhere", LONG]),
    has_images=st.booleans(),
)
@inputs(0.14)
def test_spoilt_records_become_rows_or_are_refused_with_a_sentence(
    location, data, bad, images, has_images
):
    suffix, content = data
    file = location(suffix)
    file.write_bytes(content)
    encoder = Encoder(processor() if has_images else tokenizer(), 64)

    def read():
        rows = Rows(DataFile(Source(file=str(file), images=images), bad), encoder, bad)
        return [rows[at] for at in range(len(rows))]

    refused(read)
