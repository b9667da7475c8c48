"""Training: rates by part, schedule, accumulation, packing, paths by row, precision, and mistakes.

What a stage does is compared with a bare loop of torch that the test writes out itself.
"""

import csv
import json
import math
import os
import pkgutil
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import computed, save_tiny
from tiny_llava import (
    color_question,
    processor,
    save_llava,
    tokenizer,
    write_images,
    write_lines,
)
from transformers import TrainerCallback

from surgery.adapter.apply import apply_plan, trainable_parameters
from surgery.adapter.folder import load_adapter, load_base
from surgery.data.collator import Collator
from surgery.data.encoder import Encoder
from surgery.data.file_reader import DataFile
from surgery.data.rows import Rows
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.paths.switching import text_path
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.recipe.training_schema import Source, Stage
from surgery.training.learning_rates import layer_scales, learning_rates, parameter_groups
from surgery.training.log import last_lines
from surgery.training.memory_estimate import training_memory
from surgery.training.run_folder import work_folder
from surgery.training.train import train_recipe
from surgery.training.trainer import TRAINED

WORDS = ("batch=4", "length=48", "steps=6", "rate=1e-2", "log_every=1", "save_every=2")


class Killed(BaseException):
    """As a signal ends a process: nobody catches it."""


class KillAt(TrainerCallback):
    """Ends the training in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only model with a tokenizer."""
    folder = save_tiny(tmp_path_factory.mktemp("talker") / "base", vocab_size=2048)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def multimodal_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model with a processor."""
    return save_llava(tmp_path_factory.mktemp("llava") / "base")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations without images, of different lengths."""
    words = [f"word{n}" for n in range(15)]
    asked = [(" ".join(words[: 2 + n % 9]), " ".join(words[n % 5 : 6 + n % 7])) for n in range(23)]
    return write_lines(
        tmp_path_factory.mktemp("talk") / "talk.jsonl",
        [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in asked
        ],
    )


@pytest.fixture(scope="module")
def sight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sight")
    names = write_images(folder)
    records = [color_question(name.partition(".")[0]) for name in names]
    return write_lines(folder / "sight.jsonl", records)


def recipe_of(model: Path, *words: str, name: str = "genieblue_skip") -> Any:
    return load_recipe(name, [f"model={model}", *words])


def train(model: Path, out: Path, *words: str, name: str = "genieblue_skip", **how: Any) -> Any:
    """Train and return the adapter's weights, its log, and how the stages ended."""
    results = train_recipe(recipe_of(model, *words, name=name), out, **how)
    with (out / "log.csv").open() as stream:
        log = list(csv.DictReader(stream))
    return weights(out), log, results


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{n}": t for f in files for n, t in load_file(f).items()}


def losses(log: list[dict[str, str]]) -> list[float]:
    return [float(row["loss"]) for row in log]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


# --- against a bare loop --------------------------------------------------------------------------


class Order(TrainerCallback):
    """Remembers which rows were trained on: the loader's own data set."""

    rows: Any = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        self.rows = list(train_dataloader.dataset)


def test_training_is_what_a_bare_loop_does(talker: Path, talk: Path, tmp_path: Path) -> None:
    order = Order()
    settings = ("warmup=2", "rates.copies=1e-3", "weight_decay=0.1", "clip=0.5")
    words = (*WORDS, f"data={talk}", *settings)
    got, log, _ = train(talker, tmp_path / "a", *words, callbacks=[order])

    plan = plan_recipe(recipe_of(talker, *words), weights=True)
    model: Any = apply_plan(plan, load_base(str(talker))).train()
    named = dict(trainable_parameters(plan, model))
    copies = [p for n, p in named.items() if "modules_to_save" in n]
    pairs = [p for n, p in named.items() if "lora_" in n]
    groups = [
        {"params": [p for p in copies if p.ndim == 2], "lr": 1e-3, "weight_decay": 0.1},
        {"params": [p for p in copies if p.ndim == 1], "lr": 1e-3, "weight_decay": 0.0},
        {"params": pairs, "lr": 1e-2, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    peaks = [group["lr"] for group in optimizer.param_groups]
    collate = Collator(pad_token_id=0)
    for step in range(6):
        share = step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = share * peak
        loss = model(**collate(order.rows[4 * step : 4 * step + 4])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert float(log[step]["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    after = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for name, parameter in named.items():
        saved = name.replace(".modules_to_save.default", "").replace(".default", "")
        torch.testing.assert_close(after[saved], parameter.detach(), rtol=1e-4, atol=1e-5)
    assert len(got) == len(named)


def test_accumulated_micro_batches_are_one_batch(talker: Path, talk: Path, tmp_path: Path) -> None:
    words = (*WORDS, f"data={talk}")
    _, full, _ = train(talker, tmp_path / "a", *words)
    _, parts, _ = train(talker, tmp_path / "b", *words, "accumulation=4")
    assert losses(parts) == pytest.approx(losses(full), abs=2e-4)


def test_packed_rows_do_not_see_each_other(talker: Path, talk: Path) -> None:
    encoder = Encoder(tokenizer(), 48)
    rows = list(Rows(DataFile(Source(file=str(talk))), encoder))[:6]
    plan = plan_recipe(recipe_of(talker), weights=True)
    model: Any = apply_plan(plan, load_base(str(talker))).eval()
    packed = Collator(0, packing=True)([rows[:4], rows[4:]])
    alone = Collator(0)([[row] for row in rows])
    count = (alone["labels"] != -100).sum()
    with torch.no_grad():
        first = model(**packed, use_cache=False, num_items_in_batch=count).loss
        second = model(**alone, use_cache=False, num_items_in_batch=count).loss
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("operations.adapters.peft.lora_dropout=0.3",),
        ("packing=true", "accumulation=2"),
        ("log_every=10",),
    ],
)
def test_resumed_training_is_the_uninterrupted_one_to_the_bit(
    words: tuple[str, ...], talker: Path, talk: Path, tmp_path: Path
) -> None:
    words = (*WORDS, f"data={talk}", "epochs=1", *words)
    expected, log, _ = train(talker, tmp_path / "a", *words)
    with pytest.raises(Killed):
        train(talker, tmp_path / "b", *words, callbacks=[KillAt(5)])
    assert not (tmp_path / "b").exists()
    got, resumed, _ = train(talker, tmp_path / "b", *words, resume=True)
    assert same(expected, got)
    assert [row["step"] for row in resumed] == [row["step"] for row in log]
    assert losses(resumed) == losses(log)


def test_training_does_not_go_on_with_other_data_under_the_same_name(
    talker: Path, talk: Path, tmp_path: Path
) -> None:
    data = tmp_path / "talk.jsonl"
    data.write_bytes(talk.read_bytes())
    words = (*WORDS, f"data={data}")
    with pytest.raises(Killed):
        train(talker, tmp_path / "a", *words, callbacks=[KillAt(5)])
    data.write_bytes(talk.read_bytes().replace(b"word3", b"word4"))
    assert code_of(talker, tmp_path / "a", *words, resume=True) == "T107"
    assert work_folder(tmp_path / "a").exists()
    data.write_bytes(talk.read_bytes())
    train(talker, tmp_path / "a", *words, resume=True)


def test_neither_does_it_with_another_image(
    multimodal_base: Path, sight: Path, tmp_path: Path
) -> None:
    home = tmp_path / "sight"
    shutil.copytree(sight.parent, home)
    words = (*WORDS, f"data={home / sight.name}")
    with pytest.raises(Killed):
        train(multimodal_base, tmp_path / "a", *words, callbacks=[KillAt(5)])
    image = next(home.glob("*.png"))
    image.write_bytes(image.read_bytes() + b"more")
    assert code_of(multimodal_base, tmp_path / "a", *words, resume=True) == "T107"


def test_resume_between_and_inside_stages(
    multimodal_base: Path, sight: Path, tmp_path: Path
) -> None:
    two = ("+stages.align.train=[projector]", "+stages.tune.train=[copies,adapters,projector]")
    words = (*two, *WORDS, f"data={sight}", "steps=3")
    expected, _, _ = train(multimodal_base, tmp_path / "a", *words)
    for end in (0, 2):
        out = tmp_path / f"b{end}"
        second = KillInStage("tune", end)
        with pytest.raises(Killed):
            train(multimodal_base, out, *words, callbacks=[second])
        got, log, _ = train(multimodal_base, out, *words, resume=True)
        assert same(expected, got)
        assert [row["stage"] for row in log] == ["align"] * 3 + ["tune"] * 3


class KillInStage(KillAt):
    """Ends the training in one stage alone."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(step)
        self.stage = stage

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.stage:
            super().on_step_begin(args, state, control, **kwargs)


def test_checkpoint_holds_what_trains_and_no_half_one_is_taken(
    talker: Path, talk: Path, tmp_path: Path
) -> None:
    words = (*WORDS, f"data={talk}")
    with pytest.raises(Killed):
        train(talker, tmp_path / "a", *words, callbacks=[KillAt(5)])
    stage = work_folder(tmp_path / "a") / "train"
    found = sorted(folder.name for folder in stage.glob("checkpoint-*"))
    assert found == ["checkpoint-2", "checkpoint-4"]
    plan = plan_recipe(recipe_of(talker, *words), weights=True)
    weights = load_file(stage / "checkpoint-4" / TRAINED)
    assert sum(t.numel() for t in weights.values()) == plan.trainable
    files = {file.name for file in (stage / "checkpoint-4").iterdir()}
    assert {TRAINED, "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= files
    assert not any(name.startswith(("model", "adapter")) for name in files)
    (stage / "checkpoint-4" / "complete").unlink()
    (stage / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    expected, _, _ = train(talker, tmp_path / "b", *words)
    got, _, _ = train(talker, tmp_path / "a", *words, resume=True)
    assert same(expected, got)


# --- stages and parts -----------------------------------------------------------------------------


def test_stage_changes_what_it_trains_and_nothing_else(
    multimodal_base: Path, sight: Path, tmp_path: Path
) -> None:
    words = ("+stages.align.train=[projector]", *WORDS, f"data={sight}")
    _, log, results = train(multimodal_base, tmp_path / "a", *words, name="lora")
    assert losses(log)[-1] < losses(log)[0]
    assert results[0].parameters == 32 * 32 * 2 + 32 * 2
    plan = plan_recipe(recipe_of(multimodal_base, *words, name="lora"), weights=True)
    start = dict(apply_plan(plan, load_base(str(multimodal_base))).named_parameters())
    after = dict(load_adapter(tmp_path / "a").named_parameters())
    changed = {n for n, p in start.items() if not torch.equal(p, after[n])}
    assert changed == {n for n in start if "multi_modal_projector.modules_to_save" in n}


def test_rates_by_word_and_by_layer(multimodal_base: Path) -> None:
    words = ("+stages.tune.rates={copies: 1e-3, vision: 2e-3, projector: 3e-3}", "layer_decay=0.5")
    plan = plan_recipe(recipe_of(multimodal_base, *words, "rate=5e-3"), weights=True)
    model: Any = apply_plan(plan, load_base(str(multimodal_base)))
    stage = plan.recipe.stages["tune"]
    rates = learning_rates(plan, plan.stages[0], stage, model)
    assert rates.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    found: dict[str, set[float]] = {}
    for name, rate in rates.items():
        found.setdefault(kind_of(name), set()).add(rate)
    assert found == {
        "lora": {5e-3},
        "copy": {1e-3},
        "projector": {3e-3},
        "embeddings": {2e-3 / 16},
        "layers.0": {2e-3 / 8},
        "layers.1": {2e-3 / 4},
        "layers.2": {2e-3 / 2},
        "post": {2e-3},
    }
    groups = parameter_groups(model.named_parameters(), rates, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(rates)
    assert {g["weight_decay"] for g in groups if g["params"][0].ndim == 1} == {0.0}


def kind_of(name: str) -> str:
    if "vision_tower" in name:
        inside = [w for w in ("layers.0", "layers.1", "layers.2", "post") if w in name]
        return inside[0] if inside else "embeddings"
    words = {"lora_": "lora", "projector": "projector", "modules_to_save": "copy"}
    return next(kind for word, kind in words.items() if word in name)


def test_layers_without_blocks_have_the_full_rate() -> None:
    assert layer_scales(["a.weight", "b.bias"], 0.5) == {"a.weight": 1.0, "b.bias": 1.0}


def test_text_rows_on_the_text_path_train_nothing(
    multimodal_base: Path, sight: Path, talk: Path, tmp_path: Path
) -> None:
    """Rows of text are then as if they weren't there, but for the number that divides the loss."""
    both = f"data={{a: '{sight}', b: '{talk}'}}"
    words = (*WORDS, "train=[copies,adapters]", "batch=2", "clip=0")
    texts, _, _ = train(multimodal_base, tmp_path / "t", *words, f"data={talk}", "text_rows=text")
    plan = plan_recipe(recipe_of(multimodal_base, *words), weights=True)
    start = apply_plan(plan, load_base(str(multimodal_base)))
    named = {
        n.replace(".modules_to_save.default", "").replace(".default", ""): p
        for n, p in trainable_parameters(plan, start)
    }
    saved = load_file(tmp_path / "t" / "adapter_model.safetensors")
    assert all(torch.equal(saved[n], p) for n, p in named.items())
    mixed, _, _ = train(multimodal_base, tmp_path / "m", *words, both, "text_rows=text")
    shared, _, _ = train(multimodal_base, tmp_path / "s", *words, both)
    assert not same(mixed, shared)
    assert not same(mixed, texts)


def test_text_path_of_a_trained_adapter_is_the_base(
    multimodal_base: Path, sight: Path, tmp_path: Path
) -> None:
    train(multimodal_base, tmp_path / "a", *WORDS, f"data={sight}", "train=[copies,adapters]")
    base, trained = load_base(str(multimodal_base)).eval(), load_adapter(tmp_path / "a").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    wanted = computed(base, input_ids=ids)
    with text_path(trained):
        assert torch.equal(computed(trained, input_ids=ids), wanted)
    assert not torch.equal(computed(trained, input_ids=ids), wanted)


@pytest.mark.parametrize("name", ["cogvlm_skip", "wings", "full_finetune", "lora"])
def test_every_kind_of_recipe_trains_on_images_and_text(
    name: str, multimodal_base: Path, sight: Path, talk: Path, tmp_path: Path
) -> None:
    both = f"data={{a: '{sight}', b: '{talk}'}}"
    rank = () if name == "full_finetune" else ("rank=4",)
    _, log, _ = train(
        multimodal_base, tmp_path / "a", *WORDS, *rank, both, "text_mix=0.5", name=name
    )
    assert losses(log)[-1] < losses(log)[0]
    assert load_adapter(tmp_path / "a").config is not None


# --- precision ------------------------------------------------------------------------------------


def test_small_steps_are_not_lost_on_a_bf16_base(talk: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "base", vocab_size=2048, dtype=torch.bfloat16)
    tokenizer().save_pretrained(model)
    words = (*WORDS, f"data={talk}", "precision=bf16", "rate=1e-4", "schedule=constant")
    with pytest.raises(Killed):
        train(model, tmp_path / "a", *words, callbacks=[KillAt(5)])
    weights = load_file(work_folder(tmp_path / "a") / "train" / "checkpoint-4" / TRAINED)
    assert {t.dtype for t in weights.values()} == {torch.float32}
    got, _, _ = train(model, tmp_path / "a", *words, resume=True)
    assert {t.dtype for n, t in got.items() if "lora_" not in n} == {torch.bfloat16}
    norms = [t for n, t in weights.items() if "layernorm" in n]
    assert all((norm - 1).abs().mean() > 1e-4 for norm in norms)


# --- memory ---------------------------------------------------------------------------------------


class Weigher(TrainerCallback):
    """Weighs all that a stage holds when its first gradients are there, and the moments."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        parameters = list(model.parameters())
        sizes = [nbytes(parameters), nbytes(p.grad for p in parameters if p.grad is not None)]
        self.found[Path(args.output_dir).name] = sizes

    def on_step_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        moments = (t for weights in optimizer.state.values() for t in weights.values() if t.ndim)
        self.found[Path(args.output_dir).name][2:] = [nbytes(moments)]


def nbytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["genieblue_skip", "lora", "cogvlm_skip", "wings", "full_finetune"]
)
def test_memory_is_what_the_plan_predicts(
    name: str, precision: str, multimodal_base: Path, sight: Path, tmp_path: Path
) -> None:
    model = tmp_path / "base"
    load_base(str(multimodal_base)).to(torch.bfloat16).save_pretrained(model)
    processor().save_pretrained(model)
    rank = () if name == "full_finetune" else ("rank=4",)
    two = (
        ()
        if name == "wings"
        else (
            "+stages.align.train=[projector]",
            f"+stages.tune.train={list(load_recipe(name).train)}".replace("'", ""),
        )
    )
    words = (*two, *rank, f"data={sight}", "steps=1", "batch=2", f"precision={precision}")
    weigher = Weigher()
    train(model, tmp_path / "a", *words, name=name, callbacks=[weigher])
    plan = plan_recipe(recipe_of(model, *words, name=name))
    predicted = {m.stage: [m.weights, m.gradients, m.optimizer] for m in training_memory(plan)}
    assert predicted.keys() == weigher.found.keys()
    for stage, sizes in predicted.items():
        assert sizes == pytest.approx(weigher.found[stage], rel=0.01)


# --- mistakes -------------------------------------------------------------------------------------


def code_of(model: Path, out: Path, *words: str, name: str = "genieblue_skip", **how: Any) -> str:
    with pytest.raises(SurgeryError) as caught:
        train_recipe(recipe_of(model, *words, name=name), out, **how)
    assert not out.exists()
    return caught.value.diagnostics[0].code


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("T101", ("data={}", "steps=3")),
        ("T102", ("train=[]",)),
        ("T102", ("freeze=['copies:*', 'adapters:*']",)),
        ("T103", ("rates.vision=1e-3",)),
        ("T103", ("rates.nobody=1e-3",)),
        ("T104", ("batch=4", "accumulation=3")),
        ("T105", ("trainer.learning_rate=1",)),
        ("T105", ("trainer.nonsense=1",)),
        ("T105", ("trainer.optim=nonsense",)),
        ("T111", ("packing=true", "text_rows=text")),
        ("T117", ("trainer.report_to=wandb",)),
        ("T117", ("trainer.report_to=nonsense",)),
        ("T117", ("trainer.optim=adamw_bnb_8bit",)),
        ("T117", ("trainer.optim=schedule_free_adamw",)),
        ("T117", ("trainer.use_liger_kernel=true",)),
        ("T118", ("trainer.push_to_hub=true",)),
        ("T118", ("trainer.hub_model_id=a/b",)),
        ("D101", ("data=gone.jsonl",)),
        ("D111", ("text_mix=0.3",)),
    ],
)
def test_mistake_is_reported_before_the_first_step(
    code: str, words: tuple[str, ...], talker: Path, talk: Path, tmp_path: Path
) -> None:
    assert code_of(talker, tmp_path / "a", f"data={talk}", "length=48", *words) == code
    assert not work_folder(tmp_path / "a").exists()


class Offline(TrainerCallback):  # type: ignore[misc]
    """Fails as a reporter does that finds no network, or no account."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("api_key not configured")


def test_settings_that_fail_at_once_are_named(talker: Path, talk: Path, tmp_path: Path) -> None:
    words = (f"data={talk}", "length=48", "steps=2", "batch=2")
    how = {"callbacks": [Offline()]}
    assert code_of(talker, tmp_path / "a", *words, "trainer.optim=sgd", **how) == "T119"
    with pytest.raises(ConnectionError):
        train_recipe(recipe_of(talker, *words), tmp_path / "b", **how)


def test_a_row_that_only_a_worker_saw_is_named(
    multimodal_base: Path, sight: Path, tmp_path: Path
) -> None:
    record = color_question("red")
    data = write_lines(tmp_path / "a.jsonl", [record])
    (tmp_path / "red.png").write_bytes(b"no image")
    words = (f"data={data}", "length=48", "steps=2", "batch=2", "trainer.dataloader_num_workers=1")
    assert code_of(multimodal_base, tmp_path / "a", *words) == "D106"


def test_what_is_not_learned_from_is_reported_once_before_the_first_step(
    talker: Path, talk: Path, tmp_path: Path
) -> None:
    records = [json.loads(line) for line in talk.read_text().splitlines()]
    write_lines(talk.with_name("more.jsonl"), [{**record, "source": "a"} for record in records])
    events: list[str] = []
    words = (f"data={talk.with_name('more.jsonl')}", "length=48", "steps=1", "batch=1")
    train_recipe(
        recipe_of(talker, *words),
        tmp_path / "a",
        progress=lambda logged: events.append("step"),
        warn=lambda notes: events.extend(each.code for each in notes),
    )
    assert events == ["D117", "step"]


def test_packing_with_learners_is_refused(talker: Path, talk: Path, tmp_path: Path) -> None:
    words = (f"data={talk}", "packing=true", "rank=4")
    assert code_of(talker, tmp_path / "a", *words, name="wings") == "T111"


def test_text_path_of_a_base_that_trains_is_refused(
    talker: Path, talk: Path, tmp_path: Path
) -> None:
    words = (f"data={talk}", "text_rows=text")
    assert code_of(talker, tmp_path / "a", *words, name="full_finetune") == "T108"


def test_no_data_at_all(talker: Path, tmp_path: Path) -> None:
    assert code_of(talker, tmp_path / "a") == "T101"
    assert code_of(talker, tmp_path / "a", "rank=4", name="wings") == "T101"


def test_loss_that_is_none_ends_the_training(talker: Path, talk: Path, tmp_path: Path) -> None:
    words = (*WORDS, f"data={talk}", "schedule=constant", "rate=1e30", "clip=0")
    assert code_of(talker, tmp_path / "a", *words) == "T110"


def test_unfinished_training_is_not_overwritten_unasked(
    talker: Path, talk: Path, tmp_path: Path
) -> None:
    words = (*WORDS, f"data={talk}")
    notes: list[Any] = []
    with pytest.raises(Killed):
        train(talker, tmp_path / "a", *words, callbacks=[KillAt(3)], resume=True, warn=notes.extend)
    assert [(note.code, note.severity) for note in notes] == [("T107", "note")]
    assert code_of(talker, tmp_path / "a", *words) == "T106"
    assert code_of(talker, tmp_path / "a", *words, "batch=2", resume=True) == "T107"
    train(talker, tmp_path / "a", *words, overwrite=True)
    assert not work_folder(tmp_path / "a").exists()
    with pytest.raises(SurgeryError) as caught:
        train(talker, tmp_path / "a", *words)
    assert caught.value.diagnostics[0].code == "A301"


def test_bare_words_mean_every_stage() -> None:
    staged = load_recipe("wings", ["rank=4", "steps=3", "seed=2"])
    assert {name: stage.steps for name, stage in staged.stages.items()} == {"align": 3, "tune": 3}
    assert (staged.seed, staged.stages["align"].seed) == (2, None)
    recipe = load_recipe("lora", ["rates.adapters=1e-3", "data=a"])
    assert recipe.stages["train"].rates == {"adapters": 1e-3}
    assert recipe.stages["train"].sources == {"data": Source(file="a")}
    assert plan_recipe(recipe).stages[0].name == "train"


def test_stage_settings_read_back_from_a_plan() -> None:
    stage = Stage(data={"a": "x", "b": Source(file="y", weight=2)}, betas=(0.9, 0.98), warmup=34)
    assert Stage.model_validate_json(json.dumps(stage.model_dump(mode="json"))) == stage


# --- kills, and disks that are full ---------------------------------------------------------------


MOMENTS = {
    "nothing is trained": ("training.log.replace_text", "log.csv"),
    "a checkpoint is half written": ("training.trainer.save_file", ""),
    "a checkpoint is whole": ("training.trainer.rotate_checkpoints", ""),
    "a stage is done": ("training.train.save_into", ""),
    "the adapter is half written": ("training.train.copy_log", ""),
    "the adapter is whole, beside its place": ("storage.staging._rename", "a"),
    "the adapter is in its place": ("training.train.close_work", ""),
    "the checkpoints are gone": ("training.run_folder.discard", "a.training"),
    "only the log is left": ("storage.staging.shutil.rmtree", ".a.training.partial"),
}
"""What is about to be called when the signal falls, and the name of a path that it is given."""


def killing(real: Any, name: str) -> Any:
    def killed(*given: Any, **named: Any) -> Any:
        paths = [Path(path).name for path in given if isinstance(path, str | Path)]
        if not name or name in paths:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    return killed


@pytest.fixture(scope="module")
def trained(talker: Path, talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    words = (*WORDS, f"data={talk}", "steps=2", "save_every=1")
    return words, train(talker, tmp_path_factory.mktemp("trained") / "a", *words)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_can_be_gone_on_from(
    moment: str, trained: Any, talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, (expected, log, stages) = trained
    out = tmp_path / "a"
    place, name = MOMENTS[moment]
    process = os.fork()
    if not process:
        try:
            where = f"surgery.{place}"
            monkeypatch.setattr(where, killing(pkgutil.resolve_name(where), name))
            train(talker, out, *words)
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    with pytest.raises(SurgeryError, match="T107"):
        train(talker, out, *words, "seed=5", resume=True)
    got, resumed, again = train(talker, out, *words, resume=True)
    assert same(expected, got)
    assert losses(resumed) == losses(log)
    assert again == stages
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("room", [0, 30_000, 300_000, 700_000])
def test_full_disk_is_reported_and_resumed_from_once_there_is_space(
    room: int, trained: Any, talker: Path, small_disk: Path
) -> None:
    words, (expected, _, _) = trained
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    assert code_of(talker, small_disk / "a", *words) == "A302"
    left = sorted(os.listdir(small_disk))
    assert left in (["filler"], ["a.training", "filler"])
    filler.unlink()
    got, _, _ = train(talker, small_disk / "a", *words, resume=len(left) > 1)
    assert same(expected, got)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_training_that_ends_before_its_first_checkpoint_leaves_nothing(
    error: type[BaseException], trained: Any, talker: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: Any) -> None:
        raise error

    words, _ = trained
    with monkeypatch.context() as patch:
        patch.setattr("surgery.training.train.prepare_stage", fail)
        with pytest.raises(error):
            train(talker, tmp_path / "a", *words)
    assert os.listdir(tmp_path) == []
    (tmp_path / "a.training").mkdir()
    (tmp_path / "a.training" / "thesis.txt").touch()
    for how in ({}, {"overwrite": True}, {"resume": True}):
        assert code_of(talker, tmp_path / "a", *words, **how) == "A305"


def test_name_may_be_as_long_as_the_disk_takes(trained: Any, talker: Path, tmp_path: Path) -> None:
    words, (expected, _, _) = trained
    got, _, _ = train(talker, tmp_path / ("x" * 252), *words)
    assert same(expected, got)
    assert os.listdir(tmp_path) == ["x" * 252]
    with pytest.raises(SurgeryError, match="A304"):
        train(talker, tmp_path / ("x" * 256), *words)
    with pytest.raises(SurgeryError, match="A301"):
        train(talker, Path("/"), *words)


def test_second_training_for_a_folder_is_refused_at_once(
    trained: Any, talker: Path, tmp_path: Path
) -> None:
    class Again(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            with ThreadPoolExecutor(1) as pool:
                again = pool.submit(train, talker, tmp_path / "a", *words, overwrite=True)
                assert again.exception().diagnostics[0].code == "A307"

    words, (expected, _, _) = trained
    got, _, _ = train(talker, tmp_path / "a", *words, callbacks=[Again()])
    assert same(expected, got)


def test_line_of_the_log_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    log, line = tmp_path / "log.csv", "tune,2,4,0.5,1e-3,1.0,80,9.5,0.1\n"
    head = "stage,step,steps,loss,rate,grad_norm,tokens,tokens_per_second,seconds_left\n"
    for end in range(1, len(line)):
        log.write_text(head + line.replace("2", "1", 1) + line[:end])
        assert last_lines(log)["tune"]["steps"] in (1, 2)
