"""A manifest is read as it was written, or refused."""

import json
import os

import pytest

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.evaluation.evaluate import evaluate_adapter
from surgery.export.export import export_adapter
from surgery.runtime.manifest import read_manifest
from surgery.runtime.run import run_export
from tests.tiny import perturbed_adapter, save_tiny, shallow

pytestmark = pytest.mark.usefixtures("one_thread")
DROP = object()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("manifest")
    perturbed_adapter(home / "a", shallow(home / "base"), "lora")
    export_adapter(home / "a", home / "out", lora="keep")
    return home / "out"


@pytest.fixture
def export(made, tmp_path):
    """A folder with the same parts, and a manifest of its own."""
    for item in made.iterdir():
        if item.name != "manifest.json":
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / "manifest.json").write_bytes((made / "manifest.json").read_bytes())
    return tmp_path


def edit(folder, *path, value=DROP, sealed=True):
    file = folder / "manifest.json"
    content = inner = json.loads(file.read_bytes())
    for key in path[:-1]:
        inner = inner[key]
    if value is DROP:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    if not sealed:
        content.pop("sha256", None)
    file.write_text(json.dumps(content))


def codes(folder):
    found = []
    for function, more in ((run_export, ("text", "Hello")), (evaluate_adapter, ())):
        with pytest.raises(SurgeryError) as caught:
            function(folder, *more)
        found.append(caught.value.diagnostics[0].code)
    return set(found)


EDITS = [
    (("paths", "text"), [], {"A608"}),
    (("paths", "text"), ["nothing"], {"A608"}),
    (("paths", "text"), ["../elsewhere"], {"A607"}),
    (("paths", "text"), ["/etc"], {"A607"}),
    (("paths", "text"), [""], {"A607"}),
    (("paths", "text"), 5, {"A601"}),
    (("paths",), {}, {"A608"}),
    (("paths",), {"text": ["llm"]}, {"A608"}),
    (("parts",), {}, {"A608"}),
    (("parts", "../x"), None, {"A601"}),
    (("format",), "nothing", {"A601", "A606"}),
    (("format_version",), "9", {"A601"}),
    (("plan",), None, {"A601"}),
]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(("path", "value", "expected"), EDITS)
def test_an_edit_that_means_nothing_is_refused(export, path, value, expected, sealed):
    edit(export, *path, value=value, sealed=sealed)
    assert codes(export) <= expected | ({"A609"} if sealed else set())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("paths", "text"), ["multimodal"]),
        (("paths", "multimodal"), ["multimodal"]),
        (("base",), "shared"),
        (("format",), "onnx"),
        (("model",), "builtin/tiny-qwen2"),
    ],
)
def test_an_edit_that_means_another_model_is_refused(export, path, value):
    edit(export, *path, value=value)
    assert codes(export) == {"A609"}


def test_a_manifest_of_before_and_one_that_was_only_printed_anew_are_read(export):
    edit(export, "name", value=read_manifest(export).name)
    read_manifest(export)
    edit(export, "sha256")
    read_manifest(export)
    run_export(export, "text", "Hello", new_tokens=1)


@pytest.mark.parametrize("content", ["null", "[]", "{", "[" * 100_000, "5"])
def test_a_manifest_that_is_no_object_is_refused(export, content):
    (export / "manifest.json").write_text(content)
    assert codes(export) == {"A601"}


def test_a_manifest_that_is_a_pipe_is_not_waited_for(export):
    (export / "manifest.json").unlink()
    os.mkfifo(export / "manifest.json")
    assert codes(export) <= {"A601", "A402", "A420"}


def test_an_export_is_not_evaluated_beside_another_base(made, tmp_path):
    save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(SurgeryError) as caught:
        evaluate_adapter(made, base=str(tmp_path / "other"))
    assert caught.value.diagnostics[0].code == "A401"
