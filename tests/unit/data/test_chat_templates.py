"""Shapes of chat templates in the field, each with the conversations that data sets hold.

The templates are written here after what the models' own do. What must come out is written out as
text beside them: the whole row, and what of it is learned.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import PATCH, SIDE, tokenizer, write_images, write_lines
from tokenizers.processors import Sequence
from transformers import CLIPImageProcessorPil, LlavaProcessor

from surgery.data.base import Record, RecordLocation, Turn
from surgery.data.encoder import IGNORED, Encoder, Row
from surgery.data.file_reader import DataFile
from surgery.data.rows import Rows
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.recipe.training_schema import Source
from surgery.runtime.base import Prompt
from surgery.runtime.prompt_encoding import encoded

RAISE = "{{ raise_exception('%s') }}"
ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    + RAISE % "Roles must alternate user/assistant"
    + "{% endif %}"
)

QWEN25 = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

QWEN3 = """\
{%- set ns = namespace(last=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for message in messages -%}
{%- if message.role != 'assistant' -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- else -%}
{%- set thought = '' -%}{%- set content = message.content -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last -%}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif -%}
{{ content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

LLAMA3 = """\
{%- for message in messages -%}
{%- if loop.first -%}{{ '<|begin|>' }}{%- endif -%}
{{ '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant<|end|>\\n\\n' }}{%- endif -%}"""

GEMMA = """\
{{- '<bos>' -}}
{%- set before = '' -%}{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
SYSTEM
{%- set turns = messages[1:] -%}{%- endif -%}
{%- for message in turns -%}ALTERNATE
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' -}}
{{- before if loop.first else '' -}}
{%- if message.content is string -%}{{- message.content | trim -}}
{%- else -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<start_of_image>' -}}
{%- else -%}{{- part.text | trim -}}{%- endif -%}{%- endfor -%}{%- endif -%}
{{- '<end_of_turn>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}""".replace(
    "ALTERNATE", ALTERNATE
)
GEMMA2 = GEMMA.replace("SYSTEM", RAISE % "System role not supported")
GEMMA3 = GEMMA.replace(
    "SYSTEM",
    "{%- set said = messages[0].content -%}"
    "{%- set before = (said if said is string else said[0].text) + '\\n\\n' -%}",
)

PHI3 = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}
{%- else -%}{{- eos_token -}}{%- endif -%}"""

MISTRAL = """\
{%- set turns = messages -%}{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}{%- endif -%}
{{- '<s>' -}}
{%- for message in turns -%}ALTERNATE
{%- if message.role == 'user' -%}
{{- '[INST] ' + (system if loop.index0 >= turns | length - 2 else '') -}}
{{- message.content + '[/INST]' -}}
{%- else -%}{{- ' ' + message.content + '</s>' -}}{%- endif -%}{%- endfor -%}""".replace(
    "ALTERNATE", ALTERNATE
)

SMOLVLM = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
{{- message['role'] | capitalize -}}
{{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}
{%- for line in message['content'] -%}
{%- if line['type'] == 'text' -%}{{- line['text'] -}}
{%- elif line['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}{%- endfor -%}
{{- '<end_of_utterance>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"""

LLAVA_NEXT = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- message['content'][0]['text'] + ' ' -}}
{%- else -%}
{{- message['role'].upper() + ': ' -}}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}
{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{- part['text'] + ' ' -}}{%- endfor -%}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""


@dataclass(frozen=True)
class Shape:
    """A template, and what it must make of the conversations.

    Args:
        template: its text.
        one: the row of one question and its answer.
        learned: what is learned of the answer `That.`.
        rows: of two questions with their answers.
        system: the row with a system's words before; None where they are refused.
        first: whether a conversation may begin with an answer.
        image: the token that it writes for an image.
        shown: the row of two images.
    """

    template: str
    one: str
    learned: str
    rows: int = 1
    system: str | None = None
    first: bool = True
    image: str = "<|image|>"
    shown: str = ""


TWO = "<|image|>\n<|image|>\nWhat?"
CHATML = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
SHAPES = {
    "qwen2.5": Shape(
        QWEN25,
        one="<|im_start|>system\nYou are helpful.<|im_end|>\n" + CHATML + "That.<|im_end|>\n",
        learned="That.<|im_end|>\n",
        system="<|im_start|>system\nBe short.<|im_end|>\n" + CHATML + "That.<|im_end|>\n",
        shown="<|im_start|>system\nYou are helpful.<|im_end|>\n"
        + CHATML.replace("What?", TWO)
        + "That.<|im_end|>\n",
    ),
    "qwen3": Shape(
        QWEN3,
        one=CHATML + "<think>\n\n</think>\n\nThat.<|im_end|>\n",
        learned="<think>\n\n</think>\n\nThat.<|im_end|>\n",
        rows=2,
        system="<|im_start|>system\nBe short.<|im_end|>\n"
        + CHATML
        + "<think>\n\n</think>\n\nThat.<|im_end|>\n",
        shown=CHATML.replace("What?", TWO) + "<think>\n\n</think>\n\nThat.<|im_end|>\n",
    ),
    "llama3": Shape(
        LLAMA3,
        one="<|begin|><|start|>user<|end|>\n\nWhat?<|eot|><|start|>assistant<|end|>\n\nThat.<|eot|>",
        learned="That.<|eot|>",
        system="<|begin|><|start|>system<|end|>\n\nBe short.<|eot|>"
        "<|start|>user<|end|>\n\nWhat?<|eot|><|start|>assistant<|end|>\n\nThat.<|eot|>",
        shown=f"<|begin|><|start|>user<|end|>\n\n{TWO}<|eot|>"
        "<|start|>assistant<|end|>\n\nThat.<|eot|>",
    ),
    "gemma2": Shape(
        GEMMA2,
        one="<bos><start_of_turn>user\nWhat?<end_of_turn>\n"
        "<start_of_turn>model\nThat.<end_of_turn>\n",
        learned="That.<end_of_turn>\n",
        first=False,
        image="<start_of_image>",
        shown="<bos><start_of_turn>user\n<start_of_image><start_of_image>What?<end_of_turn>\n"
        "<start_of_turn>model\nThat.<end_of_turn>\n",
    ),
    "gemma3": Shape(
        GEMMA3,
        one="<bos><start_of_turn>user\nWhat?<end_of_turn>\n"
        "<start_of_turn>model\nThat.<end_of_turn>\n",
        learned="That.<end_of_turn>\n",
        system="<bos><start_of_turn>user\nBe short.\n\nWhat?<end_of_turn>\n"
        "<start_of_turn>model\nThat.<end_of_turn>\n",
        first=False,
        image="<start_of_image>",
        shown="<bos><start_of_turn>user\n<start_of_image><start_of_image>What?<end_of_turn>\n"
        "<start_of_turn>model\nThat.<end_of_turn>\n",
    ),
    "phi3": Shape(
        PHI3,
        one="<|user|>\nWhat?<|end|>\n<|assistant|>\nThat.<|end|>\n<|endoftext|>",
        learned="That.<|end|>\n<|endoftext|>",
        rows=2,
        system="<|system|>\nBe short.<|end|>\n<|user|>\nWhat?<|end|>\n"
        "<|assistant|>\nThat.<|end|>\n<|endoftext|>",
        shown=f"<|user|>\n{TWO}<|end|>\n<|assistant|>\nThat.<|end|>\n<|endoftext|>",
    ),
    "mistral": Shape(
        MISTRAL,
        one="<s>[INST] What?[/INST] That.</s>",
        learned=" That.</s>",
        system="<s>[INST] Be short.\n\nWhat?[/INST] That.</s>",
        first=False,
        shown=f"<s>[INST] {TWO}[/INST] That.</s>",
    ),
    "smolvlm": Shape(
        SMOLVLM,
        one="<|im_start|>User: What?<end_of_utterance>\nAssistant: That.<end_of_utterance>\n",
        learned=" That.<end_of_utterance>\n",
        system="<|im_start|>System: Be short.<end_of_utterance>\n"
        "User: What?<end_of_utterance>\nAssistant: That.<end_of_utterance>\n",
        image="<image>",
        shown="<|im_start|>User:<image><image>What?<end_of_utterance>\n"
        "Assistant: That.<end_of_utterance>\n",
    ),
    "llava-next": Shape(
        LLAVA_NEXT,
        one="USER: What? ASSISTANT: That. ",
        learned=" That. ",
        system="Be short. USER: What? ASSISTANT: That. ",
        image="<image>",
        shown="USER: <image>\n<image>\nWhat? ASSISTANT: That. ",
    ),
}
ALL = pytest.mark.parametrize("name", SHAPES)


@cache
def processor_of(name: str) -> Any:
    """A processor of four tokens an image, with the shape's template and image token."""
    shape = SHAPES[name]
    own = tokenizer()
    own.add_special_tokens({"additional_special_tokens": [shape.image]})
    size = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        own,
        patch_size=PATCH,
        image_token=shape.image,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=shape.template,
    )


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


ONE = (("user", "What?"), ("assistant", "That."))
FOUR = (*ONE, ("user", "Why so?"), ("assistant", "So it is."))


def rows_of(name: str, folder: Path, record: Any, bad: Any = "error") -> list[Row]:
    write_images(folder)
    file = DataFile(Source(file=str(write_lines(folder / "a.jsonl", [record]))), bad)
    return list(Rows(file, Encoder(processor_of(name), 256), bad))


def decoded(name: str, row: Row) -> str:
    """The row as words, where the tokens of one image are one again."""
    shape = SHAPES[name]
    text: str = processor_of(name).tokenizer.decode(row.ids)
    return text.replace(shape.image * 4, shape.image)


def learned(name: str, row: Row) -> str:
    text: str = processor_of(name).tokenizer.decode(row.labels[row.labels != IGNORED])
    return text


def refusal(name: str, folder: Path, record: Any) -> str:
    """What is said of the record, which begins with its place; skipped, one sentence of all."""
    with pytest.raises(SurgeryError) as caught:
        rows_of(name, folder, record)
    (found,) = caught.value.diagnostics
    assert found.what.startswith(f"{folder / 'a.jsonl'}:1: ")
    assert found.fix
    with pytest.raises(SurgeryError) as skipped:
        rows_of(name, folder, record, "skip")
    assert [d.code for d in skipped.value.diagnostics] == ["D109"]
    return found.code


# --- the matrix -----------------------------------------------------------------------------------


@ALL
def test_one_turn(name: str, tmp_path: Path) -> None:
    (row,) = rows_of(name, tmp_path, chat(*ONE))
    assert decoded(name, row) == SHAPES[name].one
    assert learned(name, row) == SHAPES[name].learned


@ALL
def test_four_turns(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    rows = rows_of(name, tmp_path, chat(*FOUR))
    answers = [shape.learned, shape.learned.replace("That.", "So it is.")]
    assert len(rows) == shape.rows
    if shape.rows == 2:
        assert [learned(name, row) for row in rows] == answers
    else:
        assert learned(name, rows[0]) == "".join(answers)
    assert decoded(name, rows[0]).startswith(shape.one)
    for words in ("What?", "That.", "Why so?", "So it is."):
        assert words in decoded(name, rows[-1])


@ALL
def test_system(name: str, tmp_path: Path) -> None:
    record, shape = chat(("system", "Be short."), *ONE), SHAPES[name]
    if shape.system is None:
        assert refusal(name, tmp_path, record) == "D112"
        return
    (row,) = rows_of(name, tmp_path, record)
    assert decoded(name, row) == shape.system
    assert learned(name, row) == shape.learned
    (token_fields,) = rows_of(name, tmp_path, chat(*ONE, system="Be short."))
    assert token_fields.ids.tolist() == row.ids.tolist()


@ALL
def test_an_answer_first(name: str, tmp_path: Path) -> None:
    record = chat(("assistant", "Hello."), *ONE)
    if not SHAPES[name].first:
        assert refusal(name, tmp_path, record) == "D112"
        return
    (row,) = rows_of(name, tmp_path, record)
    assert "Hello." in decoded(name, row)
    assert learned(name, row) == SHAPES[name].learned


@ALL
def test_two_images(name: str, tmp_path: Path) -> None:
    (row,) = rows_of(name, tmp_path, chat(*ONE, images=["red.png", "blue.png"]))
    assert decoded(name, row) == SHAPES[name].shown
    assert learned(name, row) == SHAPES[name].learned
    assert row.images["pixel_values"].shape[0] == 2


@ALL
def test_image_token_in_words(name: str, tmp_path: Path) -> None:
    token = SHAPES[name].image
    ask = chat(("user", f"What is {token}?"), ONE[1])
    code = "D107" if token == "<image>" else "D113"
    assert refusal(name, tmp_path, ask) == code
    assert refusal(name, tmp_path, chat(ONE[0], ("assistant", f"A {token}."))) == code
    assert refusal(name, tmp_path, {"text": f"Write {token} there."}) == "D113"
    if code == "D113":
        assert refusal(name, tmp_path, {**ask, "images": ["red.png"]}) == code


@ALL
def test_empty_answer(name: str, tmp_path: Path) -> None:
    assert refusal(name, tmp_path, chat(ONE[0], ("assistant", " "))) == "D104"
    assert refusal(name, tmp_path, chat(("assistant", "x"))) == "D104"


@ALL
def test_what_is_asked_is_what_was_learned_after(name: str, tmp_path: Path) -> None:
    """`evaluate` and `run` write the prompt that training put before the answer."""
    write_images(tmp_path)
    shape, images = SHAPES[name], (tmp_path / "red.png", tmp_path / "blue.png")
    turns = (Turn("user", "<image>\n<image>\nWhat?"), Turn("assistant", "That."))
    record = Record(RecordLocation(tmp_path, 1), turns, images)
    asked = Encoder(processor_of(name), 0).prompts([(record, 1)])["input_ids"][0]
    assert len(asked)
    text = processor_of(name).tokenizer.decode(asked).replace(shape.image * 4, shape.image)
    assert text + shape.learned == shape.shown


@ALL
def test_run_asks_what_it_is_given(name: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    shape, images = SHAPES[name], (tmp_path / "red.png", tmp_path / "blue.png")
    asked = encoded(processor_of(name), Prompt("What?"), "text")["input_ids"][0]
    text = processor_of(name).tokenizer.decode(asked)
    assert text + shape.learned == shape.one
    shown = encoded(processor_of(name), Prompt("What?", images), "multimodal")["input_ids"][0]
    assert processor_of(name).tokenizer.decode(shown).count(shape.image) == 2 * 4
    for words in (f"a {shape.image} b", "a <image> b"):
        with pytest.raises(SurgeryError) as caught:
            encoded(processor_of(name), Prompt(words), "multimodal")
        assert [found.code for found in caught.value.diagnostics] == ["D113"]


# --- what only some templates do ------------------------------------------------------------------


def test_reasoning_is_learned_where_it_is_written_and_left_out_later(tmp_path: Path) -> None:
    turns = [*FOUR]
    turns[1] = ("assistant", "<think>\nHm.\n</think>\n\nThat.")
    first, second = rows_of("qwen3", tmp_path, chat(*turns))
    assert learned("qwen3", first) == "<think>\nHm.\n</think>\n\nThat.<|im_end|>\n"
    assert "Hm." not in decoded("qwen3", second)
    assert learned("qwen3", second) == "<think>\n\n</think>\n\nSo it is.<|im_end|>\n"


def test_a_system_that_moves_makes_a_row_of_each_answer(tmp_path: Path) -> None:
    first, second = rows_of("mistral", tmp_path, chat(("system", "Be short."), *FOUR))
    assert decoded("mistral", first) == "<s>[INST] Be short.\n\nWhat?[/INST] That.</s>"
    assert decoded("mistral", second) == (
        "<s>[INST] What?[/INST] That.</s>[INST] Be short.\n\nWhy so?[/INST] So it is.</s>"
    )
    assert learned("mistral", second) == " So it is.</s>"


def test_each_row_shows_the_images_before_its_answer(tmp_path: Path) -> None:
    turns = [("user", "<image>\nWhat?"), FOUR[1], ("user", "<image>\nWhy so?"), FOUR[3]]
    first, second = rows_of("phi3", tmp_path, chat(*turns, images=["red.png", "blue.png"]))
    assert first.images["pixel_values"].shape[0] == 1
    assert second.images["pixel_values"].shape[0] == 2


LOSING = {
    "the system": "{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}",
    "later turns": "{% for m in messages[:3] %}{{ m.content }}|{% endfor %}",
    "all but a few letters": "{% for m in messages %}{{ m.content[:20] }}|{% endfor %}",
    "reasoning": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}|{% endfor %}",
}


@pytest.mark.parametrize("template", LOSING.values(), ids=LOSING)
def test_a_template_that_loses_words_is_refused(template: str, tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = template
    long = "<think>First this.</think>Then that, and after it a third thing."
    record = chat(("system", "A"), ("user", "A or B?"), ("assistant", "B"), ("user", "Why?"),
                  ("assistant", long))  # fmt: skip
    file = DataFile(Source(file=str(write_lines(tmp_path / "a.jsonl", [record]))))
    with pytest.raises(SurgeryError) as caught:
        Rows(file, Encoder(own, 64))
    assert [d.code for d in caught.value.diagnostics] == ["D114"]


def test_of_templates_by_name_the_default_or_the_one_for_tools_is_taken(tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = {"default": PHI3, "tool_use": "{{ tools | tojson }}" + PHI3}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    records = [chat(*ONE), chat(*ONE, tools=[tool])]
    file = DataFile(Source(file=str(write_lines(tmp_path / "a.jsonl", records))))
    plain, second = Rows(file, Encoder(own, 128))
    assert own.decode(plain.ids) == SHAPES["phi3"].one
    assert own.decode(second.ids).endswith(SHAPES["phi3"].one)
    own.chat_template = {"rag": PHI3}
    with pytest.raises(SurgeryError) as caught:
        Rows(file, Encoder(own, 128))
    assert {d.code for d in caught.value.diagnostics} == {"D112"}


def test_tools_are_written_or_the_record_is_refused(tmp_path: Path) -> None:
    own = tokenizer()
    own.chat_template = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + PHI3
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    record = chat(*ONE, tools=[tool])
    file = DataFile(Source(file=str(write_lines(tmp_path / "a.jsonl", [record]))))
    (row,) = Rows(file, Encoder(own, 128))
    assert own.decode(row.ids).startswith('[{"type": "function", "function": {"name": "look_up"')
    assert refusal("qwen2.5", tmp_path, record) == "D114"


def test_an_empty_prompt_is_no_question() -> None:
    own = tokenizer()
    own.backend_tokenizer.post_processor = Sequence([])  # no token of its own before the words
    with pytest.raises(SurgeryError) as caught:
        encoded(own, Prompt(text="", chat=False), "text")
    assert caught.value.diagnostics[0].code == "D104"
