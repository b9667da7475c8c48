"""`surgery apply`: disk to disk and in memory, opened by plain PEFT, to the byte, or not at all."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import CONVERTED, FAMILIES, computed, is_rounding, save_tiny, tokens, without_prefix

from surgery import cli as commands
from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_base, save_adapter, write_adapter
from surgery.diagnostics.diagnostic import EXIT_DONE, EXIT_ENVIRONMENT, EXIT_USAGE
from surgery.plan.planner import Plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.storage.safetensors.checkpoint import read_checkpoint
from surgery.storage.safetensors.header import read_header

RECIPES = ("full_finetune", "genieblue_post", "genieblue_pre", "genieblue_skip", "lora")
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
ADAPTER = "adapter_model.safetensors"
RANKS = """\
defaults: [base, _self_]
operations:
  copies: {op: duplicate, blocks: [3]}
  low: {op: lora, blocks: [1], modules: [attention], rank: 2, alpha: 2}
  high: {op: lora, blocks: [10, 11], modules: [q, down], rank: 6, alpha: 3}
  default: {op: lora, blocks: rest, modules: [mlp], rank: 4}
train: [copies, low, high, default]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base", dtype=torch.bfloat16)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def surgery(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line in this process; return its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["surgery", *map(str, words)])
        try:
            commands.main()
        except SystemExit as end:
            return int(end.code or EXIT_DONE)
        return EXIT_DONE

    return run


def plan_of(model: Path, recipe: str, *overrides: str) -> Plan:
    words = [f"model={model}", "seed=7", *overrides]
    return plan_recipe(load_recipe(recipe, words), weights=True)


def stored(folder: Path) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Every tensor of a folder, to the bit."""
    adapter = folder / ADAPTER
    held = read_header(adapter) if adapter.exists() else read_checkpoint(folder).tensors
    for name, tensor in sorted(held.items()):
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.offset)
            yield name, tensor.dtype, tensor.shape, stream.read(tensor.nbytes)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def both_ways(plan: Plan, folder: Path) -> tuple[list[Any], list[Any]]:
    """What a plan gives from disk and in memory."""
    assert plan.files is not None
    write_adapter(plan, folder / "disk")
    model = apply_plan(plan, load_base(str(plan.files.folder)))
    save_adapter(plan, model, folder / "memory")
    return list(stored(folder / "disk")), list(stored(folder / "memory"))


# --- disk and memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_disk_gives_what_memory_gives(family: str, recipe: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "base", family, dtype=torch.bfloat16)
    rank = [] if recipe == "full_finetune" else ["rank=4"]
    disk, memory = both_ways(plan_of(model, recipe, *rank), tmp_path)
    assert len(disk) > 10
    assert disk == memory


@pytest.mark.parametrize("recipe", ["genieblue_skip", "full_finetune"])
@pytest.mark.parametrize(
    ("dtype", "shards", "tied"), list(product(DTYPES, [False, True], [False, True]))
)
def test_disk_gives_what_memory_gives_however_it_is_stored(
    recipe: str, dtype: str, shards: bool, tied: bool, tmp_path: Path
) -> None:
    how = {"dtype": DTYPES[dtype], "tie_word_embeddings": tied}
    model = save_tiny(tmp_path / "base", shards=shards, **how)
    assert (len(list(model.glob("*.safetensors"))) > 1) == shards
    plan = plan_of(model, recipe)
    assert bool(plan.anatomy.tied) == tied
    disk, memory = both_ways(plan, tmp_path)
    assert disk == memory
    kinds = {kind for _, kind, _, _ in disk}
    assert kinds == ({dtype} if recipe == "full_finetune" else {dtype, "F32"})


@pytest.mark.parametrize("recipe", ["genieblue_skip", "full_finetune"])
@pytest.mark.parametrize("family", CONVERTED)
def test_disk_gives_what_memory_gives_of_stacked_experts(
    family: str, recipe: str, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "base", family)
    attention = ["operations.adapters.modules=[attention]"] if recipe == "genieblue_skip" else []
    disk, memory = both_ways(plan_of(model, recipe, *attention), tmp_path)
    assert disk == memory


def test_disk_takes_names_that_memory_does_not_have(tmp_path: Path) -> None:
    """The hub's GPT-2 is stored without `transformer.` in front, which loading adds."""
    model = without_prefix(save_tiny(tmp_path / "base", "gpt2"), "transformer.")
    disk, memory = both_ways(plan_of(model, "genieblue_skip", "rank=4"), tmp_path)
    assert disk == memory


def test_seed_decides_the_start(base: Path, tmp_path: Path) -> None:
    folders = {}
    for name, seed in {"one": 1, "again": 1, "two": 2}.items():
        folders[name] = tmp_path / name
        write_adapter(plan_of(base, "lora", f"seed={seed}"), folders[name])
    one, again, two = (dict(contents(folder))[ADAPTER] for folder in folders.values())
    assert one == again
    assert one != two


# --- plain PEFT -----------------------------------------------------------------------------------

PLAIN = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "surgery":
            raise ImportError("surgery is not installed here")
sys.meta_path.insert(0, Block())
import json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
found = {}
for line in sys.argv[1:]:
    base, folder = line.split("=")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").eval()
    ids = torch.arange(3, 17).reshape(2, 7)
    model.requires_grad_(False)  # as the adapter will be: kernels follow the weights' own flags
    with torch.no_grad():
        expected = model(ids).logits
        model = PeftModel.from_pretrained(model, folder)
        apart = (model(ids).logits - expected).float().abs().max() / expected.float().abs().max()
        near = 8 * torch.finfo(expected.dtype).eps  # copies lie elsewhere in memory
        found[folder] = {"start": bool(apart < near)}
        layers = {}
        for name, module in model.base_model.model.named_modules():
            if not hasattr(module, "lora_A"):
                continue
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            b.fill_(10)
            x = torch.ones(1, a.shape[1], dtype=module.base_layer.weight.dtype)
            added = (module(x) - module.base_layer(x)).float()
            scale = (added / (x.float() @ a.T @ b.T)).median().item()
            layers[name] = [a.shape[0], scale, str(a.dtype)]
        inside = dict(model.base_model.model.named_modules())
        copies = [name for name, module in inside.items() if hasattr(module, "modules_to_save")]
        for name in copies:
            for p in inside[name].modules_to_save.parameters():
                p.add_(0.1)
        found[folder] |= {"loras": layers, "copies": copies}
        found[folder]["moved"] = not torch.equal(model(ids).logits, expected)
        with model.disable_adapter():
            found[folder]["text"] = torch.equal(model(ids).logits, expected)
assert not any(name.partition(".")[0] == "surgery" for name in sys.modules)
print(json.dumps(found))
"""


def test_adapter_opens_in_plain_peft(base: Path, tmp_path: Path) -> None:
    """With `surgery` not importable: the base at the start, every rank and scale as planned."""
    (tmp_path / "ranks.yaml").write_text(RANKS)
    deep = save_tiny(tmp_path / "deep", num_hidden_layers=12)
    plans = {name: plan_of(base, name) for name in RECIPES if name != "full_finetune"}
    plans["ranks"] = plan_of(deep, str(tmp_path / "ranks.yaml"))
    for name, plan in plans.items():
        write_adapter(plan, tmp_path / name)
    pairs = [f"{plan.files.folder}={tmp_path / name}" for name, plan in plans.items()]
    run = [sys.executable, "-c", PLAIN, *pairs]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (name, plan), found in zip(plans.items(), json.loads(done.stdout).values(), strict=True):
        assert found["start"], name
        assert found["moved"], name
        assert found["text"], name
        assert found["copies"] == [edit.path for edit in plan.swaps()]
        assert found["loras"].keys() == {edit.path for edit in plan.loras()}
        for edit in plan.loras():
            rank, scale, dtype = found["loras"][edit.path]
            assert rank == edit.rank
            assert scale == pytest.approx(edit.alpha / edit.rank, rel=0.02)
            assert dtype == "torch.float32"
    assert {edit.rank for edit in plans["ranks"].loras()} == {2, 4, 6}


# --- the bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shards", [False, True])
def test_plan_knows_the_bytes_that_apply_writes(
    recipe: str, shards: bool, checksum: bool, here, surgery
) -> None:
    model = save_tiny(here.parent / "base", shards=shards)
    (model / "tokenizer.json").write_text("{}")
    (model / "notes.txt").write_text("not taken along")
    option = ["--checksum"] if checksum else []
    assert surgery("apply", recipe, f"model={model}", "--out", "out", *option) == EXIT_DONE
    sizes = {name: len(content) for name, content in contents(here / "out").items()}
    document = json.loads((here / "out" / "plan.json").read_text())
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert document["bytes"] == {"adapter": weights, "written": sum(sizes.values())}
    assert bool(document["model"]["fingerprint"]["checksum"]) == checksum
    assert "notes.txt" not in sizes
    assert ("tokenizer.json" in sizes) == (recipe == "full_finetune")


@pytest.mark.parametrize("recipe", RECIPES)
def test_full_copy_and_adapters_hold_what_their_plan_counts(
    recipe: str, base: Path, tmp_path: Path
) -> None:
    plan = plan_of(base, recipe)
    write_adapter(plan, tmp_path / "out")
    held = sum(torch.Size(shape).numel() for _, _, shape, _ in stored(tmp_path / "out"))
    assert held == (plan.base if plan.in_place else plan.added)


def test_folder_that_trains_in_place_opens_in_transformers(base: Path, tmp_path: Path) -> None:
    write_adapter(plan_of(base, "full_finetune"), tmp_path / "out")
    found, wanted = (computed(load_base(str(f)), tokens()) for f in (tmp_path / "out", base))
    assert is_rounding(found, wanted)


# --- saved plans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_plan_gives_the_same_bytes(recipe: str, base: Path, here, surgery) -> None:
    assert surgery("plan", recipe, f"model={base}", "seed=3", "--out", "plan.json") == EXIT_DONE
    assert surgery("apply", "plan.json", "--out", "from_plan") == EXIT_DONE
    assert surgery("apply", recipe, f"model={base}", "seed=3", "--out", "direct") == EXIT_DONE
    assert contents(here / "from_plan") == contents(here / "direct")
    saved, written = (here / "plan.json").read_bytes(), (here / "direct" / "plan.json").read_bytes()
    assert len(saved) == len(written)
    layout = json.loads(written)["model"]["fingerprint"]["adapter"]  # known once it is written
    for digest in layout.values():
        written = written.replace(digest.encode(), b"0" * len(digest))
    assert saved == written


def edited(**changed: Any) -> Any:
    def edit(document: dict[str, Any], model: Path) -> None:
        document.update(changed)

    return edit


def edit_rank(document: dict[str, Any], model: Path) -> None:
    document["recipe"]["operations"]["adapters"]["rank"] = 2


def edit_edit(document: dict[str, Any], model: Path) -> None:
    document["edits"].pop()


def edit_recipe(document: dict[str, Any], model: Path) -> None:
    document["recipe"]["operations"]["adapters"]["rnk"] = 2


def edit_base(document: dict[str, Any], model: Path) -> None:
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit_config(document: dict[str, Any], model: Path) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_theta": 5.0}))


STALE = {
    "base": edit_base,
    "base config": edit_config,
    "rank": edit_rank,
    "edits": edit_edit,
    "unknown key": edit_recipe,
    "counts": edited(parameters={}),
    "bytes": edited(bytes={"adapter": 1, "written": 1}),
    "format": edited(format_version="9.0"),
    "version": edited(surgery="9.9.9"),
}


@pytest.mark.parametrize("case", STALE)
def test_saved_plan_is_refused_when_it_no_longer_holds(case, here, surgery, capsys) -> None:
    model = save_tiny(here.parent / "base")
    assert surgery("plan", "lora", f"model={model}", "--out", "plan.json") == EXIT_DONE
    document = json.loads((here / "plan.json").read_text())
    STALE[case](document, model)
    (here / "plan.json").write_text(json.dumps(document))
    capsys.readouterr()
    assert surgery("apply", "plan.json", "--out", "out") == EXIT_USAGE
    told = capsys.readouterr()
    assert "error[P210]" in told.err
    assert told.out == ""
    assert [file.name for file in here.iterdir()] == ["plan.json"]


def test_saved_plan_takes_no_overrides(base: Path, here, surgery, capsys) -> None:
    assert surgery("plan", "lora", f"model={base}", "--out", "plan.json") == EXIT_DONE
    assert surgery("apply", "plan.json", "rank=4") == EXIT_USAGE
    assert "`rank=4`" in capsys.readouterr().err
    assert surgery("apply", "plan.json", "--revision", "main") == EXIT_USAGE


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": "1.0"}', "\udcff"])
def test_other_json_is_no_plan(content: str, here, surgery, capsys) -> None:
    (here / "plan.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert surgery("apply", "plan.json") == EXIT_USAGE
    assert "error[P210]" in capsys.readouterr().err


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.json", "folder.json"])
def test_unreadable_plan_is_refused(name: str, here, surgery, capsys) -> None:
    (here / "folder.json").mkdir()
    assert surgery("apply", name) == EXIT_ENVIRONMENT
    assert f"`{name}`" in capsys.readouterr().err


def test_folder_is_named_after_the_recipe_unless_given(base: Path, here, surgery) -> None:
    assert surgery("apply", "genieblue_pre", f"model={base}") == EXIT_DONE
    assert surgery("plan", "lora", f"model={base}", "--out", "saved.json") == EXIT_DONE
    assert surgery("apply", "saved.json") == EXIT_DONE
    assert sorted(p.name for p in (here / "adapters").iterdir()) == ["genieblue_pre", "lora"]


@pytest.mark.parametrize("recipe", ["lora", "full_finetune"])
def test_second_apply_needs_overwrite(recipe: str, base: Path, here, surgery, capsys) -> None:
    words = ("apply", recipe, f"model={base}", "--out", "out")
    assert surgery(*words) == EXIT_DONE
    first = contents(here / "out")
    assert surgery(*words, "seed=5") == EXIT_ENVIRONMENT
    assert "error[A301]" in capsys.readouterr().err
    assert contents(here / "out") == first
    assert surgery(*words, "seed=5", "--overwrite") == EXIT_DONE
    assert contents(here / "out") != first
    assert [file.name for file in here.iterdir()] == ["out"]


def test_overwrite_spares_a_folder_of_others(base: Path, here, surgery, capsys) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").touch()
    words = ("apply", "lora", f"model={base}", "--out", "out", "--overwrite")
    assert surgery(*words) == EXIT_ENVIRONMENT
    assert "error[A305]" in capsys.readouterr().err
    assert [file.name for file in (here / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("option", ["peft.use_dora=true", "peft.init_lora_weights=pissa"])
def test_start_from_weights_is_refused_on_disk(option: str, base: Path, here, surgery, capsys):
    words = ("apply", "lora", f"model={base}", f"operations.adapters.{option}")
    assert surgery(*words) == EXIT_ENVIRONMENT
    assert "error[A404]" in capsys.readouterr().err
    assert list(here.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from surgery.adapter.folder import write_adapter
from surgery.recipe.loading import load_recipe
from surgery.plan.planner import plan_recipe
plan = plan_recipe(load_recipe("full_finetune", ["model=" + sys.argv[1]]), weights=True)
write_adapter(plan, Path("out"), progress=lambda done: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_killed_apply_leaves_no_folder(here: Path, surgery) -> None:
    """Killed after the first chunk of 8 MiB, by the progress that it reports."""
    model = save_tiny(here.parent / "base", vocab_size=120_000)
    run = [sys.executable, "-c", KILLED, str(model)]
    done = subprocess.run(run, cwd=here, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(file.name for file in here.iterdir()) == [".out.lock", ".out.partial"]
    assert (here / ".out.partial" / "model.safetensors").exists()
    assert surgery("apply", "full_finetune", f"model={model}", "--out", "out") == EXIT_DONE
    assert [file.name for file in here.iterdir()] == ["out"]


# --- the process ----------------------------------------------------------------------------------

FRESH = """
import json, pathlib, sys
from surgery.cli import main
sys.argv = ["surgery", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "peft"} & set(sys.modules)
    pathlib.Path("heavy.json").write_text(json.dumps(sorted(heavy)))
"""


def test_apply_runs_as_typed_from_any_folder_without_torch(here: Path, surgery, capsys) -> None:
    """The packaged recipe and model, a piped process, and an anatomy that was read before."""
    assert surgery("plan", "recipes/genieblue_skip.yaml") == EXIT_DONE
    words = ["apply", "recipes/genieblue_skip.yaml", "--format", "json"]
    run = [sys.executable, "-c", FRESH, *words]
    done = subprocess.run(run, cwd=here, capture_output=True, text=True, check=True)
    assert json.loads((here / "heavy.json").read_text()) == []
    document = json.loads(done.stdout)
    assert document["model"]["source"] == "builtin/tiny-qwen2"
    assert done.stdout == (here / "adapters" / "genieblue_skip" / "plan.json").read_text()
    assert done.stderr.startswith("writing adapters/genieblue_skip: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


def test_adapter_is_what_peft_would_save(base: Path, tmp_path: Path) -> None:
    """Opened and saved again by PEFT, it holds the same tensors under the same names."""
    write_adapter(plan_of(base, "genieblue_skip"), tmp_path / "ours")
    model = PeftModel.from_pretrained(load_base(str(base)), tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / ADAPTER) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
