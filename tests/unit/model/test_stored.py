"""Names on disk against names in memory: what is made from disk is what `from_pretrained` makes.

For stacked experts, a prefix more or less, legacy names and turned tensors, every
tensor in memory is made from the files to the bit; nothing is asked of transformers where names are
the same; and an adapter written disk to disk opens, is verified, and opens in plain PEFT.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import CONVERTED, computed, is_rounding, save_tiny, tiny_config, tokens, without_prefix
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from surgery import load_adapter, multimodal_path
from surgery.adapter.folder import write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.fingerprint import identify
from surgery.model.names.disk_names import DiskNames, read_disk_names
from surgery.model.reader import read_anatomy
from surgery.model.source import find_model
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.storage.safetensors.header import StoredTensor
from surgery.verification.runner import verify_adapter

EXPERT = "model.layers.1.mlp.experts.2.{}.weight"


def llava(folder: Path) -> Path:
    """A CLIP tower before a Llama, under the prefixes of the hub's Llava checkpoints."""
    from transformers import CLIPVisionConfig, LlavaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=16, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=tiny_config("llama"))
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def renamed(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Store such a model's tensors otherwise."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return folder


def bert(folder: Path) -> Path:
    """A BERT decoder under the names of its first release."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    config = BertConfig(**sizes, num_attention_heads=4, is_decoder=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def legacy(tensors: dict[str, Any]) -> dict[str, Any]:
        for new, name in old.items():
            tensors = {n.replace(new, name): t for n, t in tensors.items()}
        return tensors

    return renamed(folder, legacy)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "plain": lambda f: save_tiny(f, "llama"),
    "prefix taken away": lambda f: without_prefix(save_tiny(f, "gpt2"), "transformer."),
    "legacy names": bert,
    "prefixes of a vision-language model": llava,
    "shards": lambda f: save_tiny(f, "qwen3_moe", shards=True),
    "bf16": lambda f: save_tiny(f, "mixtral", dtype=torch.bfloat16),
    **{family: lambda f, family=family: save_tiny(f, family) for family in CONVERTED},  # type: ignore[misc]
}


def read(folder: Path, model: Any = None) -> DiskNames:
    files = find_model(str(folder))
    return read_disk_names(files, read_anatomy(files), model)


def bytes_of(source: Any) -> bytes:
    if not isinstance(source, StoredTensor):
        made: bytes = source()
        return made
    with source.file.open("rb") as stream:
        stream.seek(source.offset)
        return stream.read(source.nbytes)


def refused(folder: Path) -> tuple[str, str]:
    with pytest.raises(SurgeryError) as caught:
        read_anatomy(str(folder))
    return caught.value.diagnostics[0].code, str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_made_from_disk_is_what_from_pretrained_makes(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path / "model")
    auto = AutoModelForImageTextToText if "vision" in layout else AutoModelForCausalLM
    loaded = auto.from_pretrained(folder, dtype="auto").state_dict()
    stored = read(folder)
    for name, tensor in loaded.items():
        origin = stored.origin(name)
        assert origin is not None, name
        assert origin.shape == tuple(tensor.shape), name
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert bytes_of(stored.source(origin)) == raw, name


@pytest.mark.parametrize("layout", ["plain", "gpt_oss"])
def test_nothing_is_asked_where_names_are_the_same(layout: str, tmp_path: Path) -> None:
    stored = read(LAYOUTS[layout](tmp_path / "model"), model=pytest.fail)
    found = stored.disk_to_memory()
    assert found == {name: name for name in stored.checkpoint.tensors}


def test_transformers_is_asked_once(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "mixtral", vocab_size=130)
    first = read(folder)
    assert read(folder, model=pytest.fail).names == first.names


def test_a_second_reading_needs_no_torch(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "mixtral", vocab_size=132))
    read_anatomy(folder)
    words = f"import sys; from surgery import read_anatomy; read_anatomy({folder!r})"
    words += "; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", words], check=True)


def test_a_turned_tensor_that_keeps_its_name_is_seen(tmp_path: Path) -> None:
    """Qwen3-VL-MoE's experts lie the other way round on the hub."""
    from transformers import Qwen3VLMoeConfig

    text = {**tiny_config("qwen3_moe").to_dict(), "moe_intermediate_size": 24}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
    vision |= {"out_hidden_size": 32, "patch_size": 8, "deepstack_visual_indexes": [0]}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision)
    folder = tmp_path / "model"
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder, save_original_format=False)
    turn = lambda n, t: t.transpose(1, 2).contiguous() if "mlp.experts" in n else t  # noqa: E731
    renamed(folder, lambda tensors: {n: turn(n, t) for n, t in tensors.items()})
    loaded = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    stored = read(folder)
    name = next(name for name in loaded if name.endswith("experts.gate_up_proj"))
    origin = stored.origin(name)
    assert origin is not None
    assert origin.is_converted
    assert bytes_of(stored.source(origin)) == loaded[name].contiguous().numpy().tobytes()


def test_each_tensor_on_disk_knows_where_it_goes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen3_moe")
    ignored = "model.layers.4.eh_proj.weight"
    renamed(folder, lambda tensors: {**tensors, ignored: torch.zeros(2)})
    found = read(folder).disk_to_memory()
    assert found[EXPERT.format("up_proj")] == "model.layers.1.mlp.experts.gate_up_proj"
    assert found[EXPERT.format("down_proj")] == "model.layers.1.mlp.experts.down_proj"
    assert found["model.norm.weight"] == "model.norm.weight"
    assert found[ignored] is None


def test_experts_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Number 10 comes after number 9, though not in the alphabet."""
    folder = save_tiny(tmp_path / "model", "qwen3_moe", num_experts=12)
    origin = read(folder).origin("model.layers.0.mlp.experts.down_proj")
    assert origin is not None
    indices = [int(source.name.split(".")[5]) for source in origin.sources]
    assert indices == list(range(12))


@pytest.mark.parametrize(
    ("lost", "code"),
    [("up_proj", "M107"), ("down_proj", "M108")],
    ids=["stacks that do not fit", "a stack too short"],
)
def test_a_lost_expert_is_named(lost: str, code: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen3_moe")
    renamed(folder, lambda t: {n: v for n, v in t.items() if n != EXPERT.format(lost)})
    found, message = refused(folder)
    assert found == code
    assert "model.layers.1.mlp.experts" in message


def test_a_transformers_without_conversion_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model", "mixtral", vocab_size=131)
    monkeypatch.delattr("transformers.core_model_loading.rename_source_key")
    assert refused(folder)[0] == "M110"


@pytest.mark.parametrize("layout", ["prefix taken away", *CONVERTED])
def test_an_adapter_from_disk_opens_everywhere(layout: str, tmp_path: Path) -> None:
    """GenieBlue with LoRA on attention alone, on bases that memory names otherwise."""
    folder, out = LAYOUTS[layout](tmp_path / "model"), tmp_path / "adapter"
    words = [f"model={folder}", "operations.adapters.modules=[attention]", "rank=4"]
    write_adapter(plan_recipe(load_recipe("genieblue_skip", words), weights=True), out)
    ids = tokens()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    wanted = computed(base, ids)
    ours = load_adapter(out)
    with multimodal_path(ours):
        assert is_rounding(computed(ours, ids), wanted)
    plain = PeftModel.from_pretrained(base, out).eval()
    assert is_rounding(computed(plain, ids), wanted)
    assert verify_adapter(out).passed
    state = plain.get_base_model().state_dict()
    for name, tensor in load_file(out / "adapter_model.safetensors").items():
        inner = name.removeprefix("base_model.model.")
        found = [t for n, t in state.items() if n.replace(".default", "") == inner]
        copies = [t for n, t in state.items() if n.replace(".modules_to_save.default", "") == inner]
        assert torch.equal((copies or found)[0], tensor), name


@pytest.mark.parametrize("layout", ["prefix taken away", "qwen3_moe"])
def test_the_probe_has_the_name_in_memory(layout: str, tmp_path: Path) -> None:
    files = find_model(str(LAYOUTS[layout](tmp_path / "model")))
    found = identify(files, read_anatomy(files))
    assert found is not None
    loaded = AutoModelForCausalLM.from_pretrained(files.folder).state_dict()
    values = loaded[found["probe"]["tensor"]].flatten()[:4]
    assert found["probe"]["values"] == [float(value) for value in values]
    json.dumps(found)
