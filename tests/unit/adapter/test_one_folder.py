"""One folder, one model: what is edited in it is refused, with the key that differs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.adapter.apply import apply_plan
from surgery.adapter.consistency import FREE_KEYS, PEFT_DEFAULTS
from surgery.adapter.folder import load_adapter, read_plan, save_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import export_adapter
from surgery.verification.runner import verify_adapter
from tests.tiny import perturbed_adapter, planned, save_tiny, tiny_model, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG, PLAN, WEIGHTS = "adapter_config.json", "plan.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `base`, and `adapter` of it, moved off its start."""
    home = tmp_path_factory.mktemp("one")
    save_tiny(home / "base")
    perturbed_adapter(home / "adapter", home / "base", "genieblue_skip")
    return home


@pytest.fixture
def adapter(made, tmp_path) -> Path:
    """A copy that may be edited."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (made / "adapter").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(file: Path, **changed: Any) -> None:
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps({**content, **changed}))


def edit_plan(folder: Path, *path: str, value: Any = None, drop: bool = False) -> None:
    file = folder / PLAN
    content = inner = json.loads(file.read_bytes())
    for key in path[:-1]:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file.write_text(json.dumps(content))


def refusal(function, *args, **kwargs):
    with pytest.raises(SurgeryError) as caught:
        function(*args, **kwargs)
    return caught.value.diagnostics[0]


EDITS = {
    "lora_alpha": 1000,
    "r": 4,
    "use_rslora": True,
    "exclude_modules": ["model.layers.0.self_attn.q_proj"],
    "use_dora": True,
    "layer_replication": [[0, 2], [1, 4]],
    "alpha_pattern": {"q_proj": 99},
    "rank_pattern": {"q_proj": 2},
    "target_modules": ["q_proj"],
    "modules_to_save": None,
    "fan_in_fan_out": True,
    "bias": "all",
    "lora_bias": True,
    "layers_to_transform": [0],
    "trainable_token_indices": [1, 2],
    "init_lora_weights": "pissa",
    "task_type": "SEQ_CLS",
    "peft_type": "LOHA",
    "target_parameters": ["model.layers.0.mlp.gate_proj.weight"],
}


@pytest.mark.parametrize("key", EDITS)
def test_a_key_that_changes_the_model_is_refused_by_all_with_both_values(adapter, tmp_path, key):
    edit(adapter / CONFIG, **{key: EDITS[key]})
    for function, more in (
        (load_adapter, {}),
        (verify_adapter, {}),
        (export_adapter, {"out": tmp_path / "out"}),
    ):
        found = refusal(function, adapter, **more)
        assert found.code == "A420"
        assert f"`{key}`" in found.what
        assert str(EDITS[key])[:20] in found.what
    assert not (tmp_path / "out").exists()


def test_a_loaded_base_is_no_way_round(adapter, made):
    from surgery.adapter.folder import load_base

    edit(adapter / CONFIG, lora_alpha=1000)
    assert refusal(load_adapter, adapter, load_base(str(made / "base"))).code == "A420"


def test_what_moves_no_number_may_be_edited(adapter, made):
    edit(
        adapter / CONFIG,
        base_model_name_or_path="somebody/else",
        revision="main",
        inference_mode=False,
        auto_mapping={"base_model_class": "X"},
        a_field_of_a_newer_peft=None,
        use_dora=False,
        lora_dropout=0.0,
        bias="none",
    )
    (adapter / "README.md").write_text("mine")
    ids = tokens()
    with torch.no_grad():
        logits = load_adapter(adapter)(ids).logits
        assert torch.equal(logits, load_adapter(made / "adapter")(ids).logits)


def test_the_defaults_of_peft_are_known():
    from peft import LoraConfig

    written = json.loads(json.dumps(LoraConfig().to_dict(), default=str))
    ours = {"r", "lora_alpha", "target_modules", "task_type", "peft_type"}  # always written
    defaults = {key: value for key, value in written.items() if key not in {*ours, *FREE_KEYS}}
    assert defaults == dict(PEFT_DEFAULTS)


@pytest.mark.parametrize("value", [{}, [], 0, False, ""])
def test_an_empty_value_where_peft_asks_for_none_is_refused(adapter, value):
    edit(adapter / CONFIG, layers_to_transform=value)
    assert refusal(load_adapter, adapter).code == "A420"


@pytest.mark.parametrize("content", ["null", "[1]", "{", "", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(adapter, content):
    (adapter / CONFIG).write_text(content)
    assert refusal(load_adapter, adapter).code == "A420"


def test_a_plan_whose_recipe_is_not_the_folders_is_refused(adapter):
    edit_plan(adapter, "recipe", "operations", "adapters", "alpha", value=1.0)
    found = refusal(load_adapter, adapter)
    assert (found.code, "operations.adapters.alpha" in found.what) == ("A423", True)


def test_a_plan_that_lists_other_edits_is_refused(adapter):
    edit_plan(adapter, "edits", "0", "path", value="model.layers.2")
    found = refusal(load_adapter, adapter)
    assert (found.code, "`edits.0.path`" in found.what) == ("A423", True)


def test_a_vision_tower_that_the_folder_lacks_is_refused(adapter):
    edit_plan(adapter, "recipe", "vision", value="x")
    for function in (load_adapter, verify_adapter):
        assert refusal(function, adapter).code == "A423"


@pytest.mark.parametrize("value", [{}, [], 5, "x", True, {"sample": "0" * 64}, None])
def test_a_plan_without_the_fingerprint_that_was_written_is_refused(adapter, tmp_path, value):
    edit_plan(adapter, "model", "fingerprint", value=value)
    assert refusal(load_adapter, adapter).code == "A422"
    assert refusal(export_adapter, adapter, tmp_path / "out").code == "A422"


def test_a_plan_without_a_fingerprint_is_refused(adapter):
    edit_plan(adapter, "model", "fingerprint", drop=True)
    assert refusal(load_adapter, adapter).code == "A422"


def test_an_adapter_of_a_model_in_memory_opens_without_a_fingerprint(tmp_path):
    model = tiny_model()
    plan = planned(model)
    save_adapter(plan, apply_plan(plan, model), tmp_path / "a")
    document = json.loads((tmp_path / "a" / PLAN).read_bytes())
    assert document["model"]["fingerprint"] is None
    load_adapter(tmp_path / "a", tiny_model())


def rewrite_header(file: Path, change) -> None:
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = change(json.loads(raw[8 : 8 + size]))
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def swapped(header):
    """Two tensors of one shape under each other's name."""
    first, *others = (n for n in header if n != "__metadata__")
    alike = [n for n in others if header[n]["shape"] == header[first]["shape"]]
    names = {first: alike[0], alike[0]: first}
    return {names.get(name, name): entry for name, entry in header.items()}


def retyped(header):
    first = next(n for n in header if n != "__metadata__")
    return {**header, first: {**header[first], "dtype": "I32"}}


@pytest.mark.parametrize("change", [swapped, retyped])
def test_a_header_that_gives_the_bytes_another_meaning_is_refused(adapter, tmp_path, change):
    rewrite_header(adapter / WEIGHTS, change)
    assert refusal(load_adapter, adapter).code == "A421"
    assert refusal(export_adapter, adapter, tmp_path / "out").code == "A421"


def test_bfloat16_read_as_float16_is_refused(tmp_path):
    save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    adapter = perturbed_adapter(tmp_path / "a", tmp_path / "base", "genieblue_skip")

    def change(header):
        name = next(n for n, e in header.items() if e.get("dtype") == "BF16")
        return {**header, name: {**header[name], "dtype": "F16"}}

    rewrite_header(adapter / WEIGHTS, change)
    assert refusal(load_adapter, adapter).code == "A421"


def test_weights_that_a_tool_wrote_again_are_fine(adapter):
    file = adapter / WEIGHTS
    rewrite_header(file, lambda header: {**header, "__metadata__": {"by": "me"}})
    load_adapter(adapter)
    tensors = load_file(file)
    save_file(dict(reversed(tensors.items())), file)
    load_adapter(adapter)


def test_weights_that_the_plan_knows_nothing_of_are_refused(tmp_path):
    save_tiny(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "a", tmp_path / "base", "full_finetune")
    edit_plan(adapter, "recipe", "train", value=[])
    (adapter / "recipe.yaml").unlink()
    assert refusal(load_adapter, adapter).code in ("A421", "A423", "P209", "P211")


@pytest.mark.parametrize("name", [CONFIG, PLAN, WEIGHTS, "recipe.yaml", "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_under_a_files_name_is_refused_and_not_waited_for(adapter, name, kind):
    (adapter / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(adapter / name)
    else:
        (adapter / name).symlink_to("/dev/zero")
    if name == "manifest.json":  # it's no export then
        load_adapter(adapter)
    else:
        assert refusal(load_adapter, adapter).code in ("A402", "A420", "A423", "M207")


def changed_middle(base: Path) -> None:
    """Other numbers in the middle of a matrix, where neither end of it shows."""
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][32] *= 2
    save_file(tensors, file, {"format": "pt"})


def test_a_base_that_changed_in_the_middle_of_a_tensor_is_refused(tmp_path):
    save_tiny(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "a", tmp_path / "base", "lora")
    changed_middle(tmp_path / "base")
    for function, more in (
        (load_adapter, {}),
        (verify_adapter, {}),
        (export_adapter, {"out": tmp_path / "out"}),
    ):
        assert refusal(function, adapter, **more).code == "A401"


def test_a_fingerprint_of_before_is_still_read(tmp_path):
    save_tiny(tmp_path / "base")
    adapter = perturbed_adapter(tmp_path / "a", tmp_path / "base", "lora")
    edit_plan(adapter, "model", "fingerprint", "strided", drop=True)
    edit_plan(adapter, "model", "fingerprint", "adapter", drop=True)
    read_plan(adapter)
    changed_middle(tmp_path / "base")  # which it has never seen
    read_plan(adapter)
