"""What the commit before the packages wrote is read as it was: `made` holds its folders and JSON.

Made by `save_adapter`, `export --lora keep`, `plan --out`, `sweep` on a random model of 4 blocks;
`made/json` by the commands of `COMMANDS`. FOLDER stands for where they were made.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery import load_adapter, multimodal_path, text_path, verify_adapter
from surgery.cli import main
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.runtime.formats.hf import open_path
from surgery.runtime.manifest import read_manifest

MADE = Path(__file__).parent / "made"
COMMANDS = {
    "plan": "plan genieblue_skip model=base rank=2",
    "plan_deploy": "plan lora model=base --deploy",
    "plan_train": "plan lora model=base --train",
    "inspect": "inspect base",
    "lint": "lint genieblue_skip",
    "verify": "verify genieblue_skip",
    "sweep": "sweep recipe=lora,genieblue_skip model=base rank=2,4 --out again",
    "targets": "targets list",
    "recipes": "recipes list",
    "diff": "diff lora genieblue_skip",
}
ADAPTERS = ("genieblue_skip", "lora", "cogvlm_post")


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made"
    shutil.copytree(MADE, folder)
    for file in (f for pattern in ("*.json", "*.yaml", "*.md") for f in folder.rglob(pattern)):
        file.write_text(file.read_text().replace("FOLDER", str(folder)))
    monkeypatch.chdir(folder)


def surgery(*words: str) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    typed, sys.argv = sys.argv, ["surgery", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = typed
    out.seek(0)
    return out.read()


def form(document: Any) -> Any:
    """Which keys a document has, and of which type their values are."""
    if isinstance(document, dict):
        return {key: form(value) for key, value in document.items()}
    if isinstance(document, list):
        return [form(value) for value in document]
    return "number" if isinstance(document, int | float) else type(document).__name__


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_opens_and_is_verified(name: str) -> None:
    assert verify_adapter(name).passed


@pytest.mark.parametrize("name", ["genieblue_skip", "lora"])
def test_an_adapter_has_both_paths(name: str) -> None:
    model = load_adapter(name)
    ids = torch.arange(8)[None] + 3
    with torch.no_grad():
        with text_path(model):
            text = model(ids).logits
        with multimodal_path(model):
            assert not torch.equal(text, model(ids).logits)


def test_an_export_opens_as_the_adapter_that_it_was_made_of() -> None:
    ids = torch.arange(8)[None] + 3
    exported = open_path(Path("export"), read_manifest(Path("export")), "multimodal")
    with torch.no_grad():
        found, expected = exported(ids).logits, load_adapter("genieblue_skip")(ids).logits
    assert torch.allclose(found.float(), expected.float(), atol=0.02 * expected.abs().max())


def test_a_saved_plan_is_applied_whatever_its_notes_say() -> None:
    plan = json.loads(Path("plan.json").read_text())
    assert plan["diagnostics"][0]["code"] == "P212"
    plan["diagnostics"][0]["what"] = "worded by another version"
    Path("plan.json").write_text(json.dumps(plan))
    surgery("apply", "plan.json", "--out", "applied")
    assert Path("applied/adapter_model.safetensors").is_file()


def test_a_sweep_goes_on() -> None:
    words = ["recipe=lora,genieblue_skip", "model=base", "rank=2,4", "--out", "sweep", "--resume"]
    before = json.loads(Path("sweep/results.json").read_text())
    assert "Traceback" not in surgery("sweep", *words)
    assert form(json.loads(Path("sweep/results.json").read_text())) == form(before)


@pytest.mark.parametrize("name", COMMANDS)
def test_documents_for_machines_have_their_form(name: str) -> None:
    before = json.loads(Path(f"json/{name}.json").read_text())
    now = json.loads(surgery(*COMMANDS[name].split(), "--format", "json"))
    first, second = (d[0] if isinstance(d, list) else d for d in (before, now))
    assert first.get("format_version") == second.get("format_version")
    assert form(now) == form(before)


def test_an_edited_folder_is_refused_as_before() -> None:
    plan = json.loads(Path("lora/plan.json").read_text())
    plan["recipe"]["operations"]["adapters"]["rank"] = 4
    Path("lora/plan.json").write_text(json.dumps(plan))
    with pytest.raises(SurgeryError) as caught:
        load_adapter("lora")
    assert caught.value.diagnostics[0].code in ("A420", "A423")
