"""A head that is stored apart from the embeddings it is said to be tied to."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.adapter.folder import load_adapter, load_base
from surgery.export.export import export_adapter
from surgery.model.reader import read_anatomy
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from tests.tiny import perturbed_adapter, save_tiny, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def stored_twice(folder, factor):
    """A tied model whose head is stored as well, as a multiple of the embeddings."""
    save_tiny(folder, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert HEAD not in tensors
    save_file({**tensors, HEAD: tensors[EMBEDDINGS] * factor}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("factor", [1, 2])
def test_parameters_are_those_that_transformers_builds(tmp_path, factor):
    base = stored_twice(tmp_path / "base", factor)
    model, anatomy = load_base(str(base)), read_anatomy(str(base))
    assert anatomy.parameters == model.num_parameters()
    assert (HEAD in anatomy.tied) == (factor == 1)
    assert anatomy == read_anatomy(model).model_copy(update={"source": anatomy.source})


def test_one_that_differs_at_its_end_alone_is_apart(tmp_path):
    base = stored_twice(tmp_path / "base", 1)
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors[HEAD][-1, -1] += 1
    save_file(tensors, file, {"format": "pt"})
    assert read_anatomy(str(base)).parameters == load_base(str(base)).num_parameters()


@pytest.mark.parametrize("recipe", ["genieblue_skip", "full_finetune"])
def test_a_plan_counts_trains_and_exports_both(tmp_path, recipe):
    base = stored_twice(tmp_path / "base", 2)
    plan = plan_recipe(load_recipe(recipe, [f"model={base}"]), weights=True)
    assert plan.base == load_base(str(base)).num_parameters()
    folder = perturbed_adapter(tmp_path / "a", base, recipe)
    export_adapter(folder, tmp_path / "out")
    ids = tokens()
    with torch.no_grad():
        expected = load_adapter(folder)(ids).logits
        found = load_base(str(tmp_path / "out" / "multimodal"))(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
