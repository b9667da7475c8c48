"""`--to executorch`: what the programs say, step by step, is what torch says, on both paths."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.shrink import tiny_config
from tiny import greedy, perturbed_adapter, save_tiny, trained_adapter
from tiny_llava import save_llava
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.adapter.folder import load_adapter, load_base
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter, prepare_export
from surgery.model.source import find_model
from surgery.paths.switching import text_path
from surgery.runtime.formats.executorch import generate_tokens, open_program
from surgery.runtime.manifest import Manifest, read_manifest
from surgery.runtime.run import run_export

pytestmark = pytest.mark.usefixtures("one_thread")
MISSING = find_spec("executorch") is None
made = pytest.mark.skipif(MISSING, reason="executorch isn't installed: `make test-executorch`")
BASE = find_model("builtin/tiny-qwen2").folder
PROMPT = "A list is a thing that holds many words, and one can read each of them in turn. Then"
STEPS = 36
FEW = [5, 9, 33, 70, 100, 101, 20, 3, 77, 61, 8, 40, 13]
KILLED = """
import os, signal, sys
from pathlib import Path
from surgery.export.formats import _executorch_lowering as executorch_lowering
from surgery.export.export import prepare_export
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
executorch_lowering._record = die
prepare_export(Path(sys.argv[1]), to="executorch").write(Path(sys.argv[2]), overwrite=True)
"""


def said(out: Path, path: Any, ids: list[int], steps: int = STEPS) -> list[int]:
    program, record = open_program(out, read_manifest(out), path)
    return generate_tokens(program, ids, steps, (), record.tokens)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A shortly trained adapter of the built-in model, and its export."""
    folder = tmp_path_factory.mktemp("executorch")
    adapter = trained_adapter("genieblue_skip", folder)
    export_adapter(adapter, folder / "out", to="executorch", prefill=16, context=128)
    return adapter, folder / "out"


@made
def test_both_paths_say_what_torch_says(trained: tuple[Path, Path]) -> None:
    adapter, out = trained
    ids = AutoTokenizer.from_pretrained(BASE)(PROMPT)["input_ids"]
    assert len(ids) > 16, "there are to be several pieces"
    assert len(ids) % 2, "the last of them is to be an odd one"
    model = load_adapter(adapter).float().eval()
    with text_path(model):
        text = greedy(model, ids, STEPS)
    seen = greedy(model, ids, STEPS)
    assert text != seen, "training moved nothing"
    assert text == greedy(load_base(str(BASE)).float().eval(), ids, STEPS)
    assert said(out, "text", ids) == text
    assert said(out, "multimodal", ids) == seen


@made
def test_a_loaded_program_answers_anew(trained: tuple[Path, Path]) -> None:
    """What an earlier answer left in the cache is written over."""
    program, record = open_program(trained[1], read_manifest(trained[1]), "multimodal")
    first = generate_tokens(program, FEW, STEPS, (), record.tokens)
    assert generate_tokens(program, FEW[:2], STEPS, (), record.tokens) != first
    assert generate_tokens(program, FEW, STEPS, (), 5) == first, (
        "pieces of another length say the same"
    )
    assert (
        generate_tokens(program, FEW, STEPS, first[3:4], 16) == first[: first.index(first[3]) + 1]
    )


@made
def test_run_answers_as_transformers_do(trained: tuple[Path, Path]) -> None:
    adapter, out = trained
    inputs = AutoTokenizer.from_pretrained(BASE)([PROMPT], return_tensors="pt")
    model = load_adapter(adapter).float().eval()
    wanted = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS)[0]
    answer = run_export(out, "multimodal", PROMPT, new_tokens=STEPS, chat=False)
    assert [*answer.prompt, *answer.tokens] == wanted.tolist()
    assert answer.text
    with pytest.raises(SurgeryError, match="A614"):
        run_export(out, "text", PROMPT, new_tokens=120, chat=False)


@made
def test_the_runner_of_phones_answers_the_same(trained: tuple[Path, Path]) -> None:
    """ExecuTorch's own, which asks the program itself for its lengths and its end."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    folder = trained[1] / "llm"
    said: list[str] = []
    asked = GenerationConfig(temperature=0.0, max_new_tokens=STEPS, echo=False, num_bos=1)
    runner = TextLLMRunner(str(folder / "model.pte"), str(folder / "tokenizer.json"))
    runner.generate(PROMPT, asked, said.append)
    answer = run_export(trained[1], "text", PROMPT, new_tokens=STEPS, chat=False)
    end = AutoTokenizer.from_pretrained(folder).eos_token
    assert "".join(said).removesuffix(end) == answer.text


@made
def test_the_manifest_tells_all_that_running_takes(trained: tuple[Path, Path]) -> None:
    adapter, out = trained
    manifest = read_manifest(out)
    assert manifest.paths == {"text": ("llm",), "multimodal": ("multimodal",)}
    assert (manifest.lora, manifest.format) == ("merge", "executorch")
    assert manifest.toolchain.keys() >= {"torch", "transformers", "executorch"}
    for name, part in manifest.parts.items():
        assert part.dtype == "F32"
        assert sorted(file.name for file in (out / name).iterdir()) == sorted(
            file.name for file in part.files
        ), "the plain checkpoint is gone"
        (graph,) = (file.graph for file in part.files if file.graph)
        assert (graph.phase, graph.tokens, graph.window) == ("both", 16, 128)
        assert [value.shape for value in graph.inputs] == [(1, 16), (16,)]
        assert [value.shape for value in graph.outputs] == [(1, 16, 2048)]
    size = sum(file.bytes for part in manifest.parts.values() for file in part.files)
    required_space = prepare_export(
        adapter, to="executorch", prefill=16, context=128
    ).required_space(out.parent)
    checkpoint = (BASE / "model.safetensors").stat().st_size
    assert size + checkpoint < required_space < size + 3 * checkpoint


@made
@pytest.mark.parametrize("path", ["text", "multimodal"])
def test_xnnpack_has_the_matrices(trained: tuple[Path, Path], path: Any) -> None:
    """Seven of each block, and the head; of what is left to the runtime none multiplies."""
    program, _ = open_program(trained[1], read_manifest(trained[1]), path)
    delegates, operators = plan_of(program.file)
    assert set(delegates) == {"XnnpackBackend"}
    assert len(delegates) >= 12 * 4 + 1
    assert not {"aten::linear", "aten::mm", "aten::addmm", "aten::bmm"} & operators


def plan_of(file: Path) -> tuple[list[str], set[str]]:
    """The backends of a program's delegated graphs, and the operators that stay outside."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plans = deserialize_pte_binary(file.read_bytes()).program.execution_plan
    (plan,) = (plan for plan in plans if plan.name == "forward")
    return [delegate.id for delegate in plan.delegates], {op.name for op in plan.operators}


@made
@pytest.mark.parametrize(
    ("family", "recipe", "how", "prefill"),
    [
        ("llama", "full_finetune", {"num_hidden_layers": 2}, 32),
        ("gemma3_text", "genieblue_skip", {"layer_types": ["sliding_attention"] * 4}, 5),
        ("gpt2", "lora", {"n_layer": 2}, 1),
    ],
)
def test_other_families_and_recipes(
    family: str, recipe: str, how: Any, prefill: int, tmp_path: Path
) -> None:
    """A base that trained in place; sliding windows of 8 words; learned positions."""
    base = save_tiny(tmp_path / "base", family, **how)
    adapter = perturbed_adapter(tmp_path / "a", base, recipe)
    out = tmp_path / "out"
    options = {"to": "executorch", "base": "shared", "prefill": prefill, "context": 32}
    manifest: Manifest = export_adapter(adapter, out, **options)
    assert manifest.paths == {"text": ("multimodal",), "multimodal": ("multimodal",)}
    wanted = greedy(load_adapter(adapter).float().eval(), FEW, 19)
    assert said(out, "text", FEW, 19) == wanted
    assert len({*wanted}) > 1, "a model that says one word alone proves nothing"


@made
def test_a_killed_export_leaves_the_old_folder(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", num_hidden_layers=1)
    adapter, out = perturbed_adapter(tmp_path / "a", base, "lora"), tmp_path / "exports" / "out"
    export_adapter(adapter, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    run = [sys.executable, "-c", KILLED, str(adapter), str(out)]
    done = subprocess.run(run, capture_output=True, check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    (left,) = (file for file in out.parent.iterdir() if file != out)
    assert list(left.rglob("model.pte")), "it was killed before there was a program"
    export_adapter(adapter, out, overwrite=True)
    assert list(out.parent.iterdir()) == [out]


def refused(adapter: Path, **options: Any) -> str:
    with pytest.raises(SurgeryError) as caught:
        prepare_export(adapter, **{"to": "executorch", **options})
    return str(caught.value)


def test_what_a_program_cannot_be_is_refused(tmp_path: Path) -> None:
    adapter = perturbed_adapter(tmp_path / "a", save_tiny(tmp_path / "base"), "genieblue_skip")
    assert "A623" in refused(adapter, lora="keep")
    assert "A613" in refused(adapter, prefill=64, context=32)
    multimodal = perturbed_adapter(tmp_path / "b", save_llava(tmp_path / "eyes"), "genieblue_skip")
    assert "A622" in refused(multimodal)


@made
def test_what_has_no_such_cache_is_told(tmp_path: Path) -> None:
    """A state instead of keys and values: nothing that the cache of transformers' exporter has."""
    AutoModelForCausalLM.from_config(tiny_config("mamba")).save_pretrained(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "a", tmp_path / "base", "full_finetune")
    with pytest.raises(SurgeryError, match="A622"):
        export_adapter(adapter, tmp_path / "exports" / "out", to="executorch")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.skipif(not MISSING, reason="executorch is installed")
def test_a_missing_extra_is_told(tmp_path: Path) -> None:
    adapter = perturbed_adapter(tmp_path / "a", save_tiny(tmp_path / "base"), "genieblue_skip")
    assert "A621" in refused(adapter)
    export_adapter(adapter, tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    made = read_manifest(tmp_path / "out").model_copy(update={"format": "executorch"})
    file.write_text(made.sealed().model_dump_json())
    with pytest.raises(SurgeryError, match="A621"):
        run_export(tmp_path / "out", "text", PROMPT)
