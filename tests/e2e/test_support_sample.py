"""A sample of the conformance suite: types of every kind do what the table of all types says.

What is expected stands here and not in the table, so that a type that is refused or fails anew is
seen. `make test` runs one of each kind, `make test-all` the sample, `make support` all types.
"""

import pytest
import torch
from support.conform import conform

from surgery.model.quiet import quiet

BOTH = {"duplicate": "yes", "lora": "yes"}
RUN = {
    "bert-generation": "bert.encoder.layer",
    "bloom": "transformer.h",
    "cohere2": "model.layers",
    "deepseek_v3": "model.layers",
    "falcon": "transformer.h",
    "gemma2": "model.layers",
    "gemma3": "model.language_model.layers",
    "gemma3_text": "model.layers",
    "gemma3n_text": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "gpt_oss": "model.layers",
    "jamba": "model.layers",
    "llama": "model.layers",
    "llava": "model.language_model.layers",
    "mamba": "backbone.layers",
    "mistral": "model.layers",
    "mixtral": "model.layers",
    "nemotron_h": "model.layers",
    "olmo2": "model.layers",
    "opt": "model.decoder.layers",
    "phi3": "model.layers",
    "qwen2": "model.layers",
    "qwen2_vl": "model.language_model.layers",
    "qwen3": "model.layers",
    "qwen3_moe": "model.layers",
    "smollm3": "model.layers",
    "zamba2": "model.layers",
}
# plain, fused, several norms, state space, experts, packed experts, vision
QUICK = {"gpt2", "phi3", "gemma2", "jamba", "mixtral", "gpt_oss", "llava"}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUN],
)
def test_type_runs_every_operation(model_type):
    with quiet():
        row = conform(model_type, tuple(BOTH))
    assert row.reason == ""
    assert row.blocks == RUN[model_type]
    assert row.outcomes == BOTH


def test_parallel_lists_are_no_blocks():
    with quiet():
        row = conform("xlm", ())
    assert row.blocks == ""
    assert "the parts of a block are in parallel lists" in row.reason
    assert "transformer.attentions" in row.reason
