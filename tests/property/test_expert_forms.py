"""All forms of routing give what a slow loop over tokens gives, outputs and gradients."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import planned, tiny_model, tokens
from torch import nn

from surgery.adapter.apply import apply_plan
from surgery.layers.cogvlm_positions import position_lag
from surgery.layers.image_tokens import apply_boundary, sample_starts
from surgery.layers.routing import find_runs

ROWS, TOKENS = 2, 6
MODELS: dict[str, Any] = {}


def model_of(family: str, form: str, boundary: str) -> Any:
    key = f"{family} {form} {boundary}"
    if key not in MODELS:
        MODELS[key] = expert_model(family, form, boundary)
    return MODELS[key]


def expert_model(family: str, form: str, boundary: str) -> Any:
    model = tiny_model(family, num_hidden_layers=2, n_layer=2)
    options = [f"operations.experts.form={form}", f"operations.experts.boundary={boundary}"]
    model = apply_plan(planned(model, "cogvlm_full", *options), model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".expert." in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


class Slow(nn.Module):
    """Each token alone through its own matrix: nothing shared with the package."""

    def __init__(self, base: Any, expert: Any, which: list[list[bool]]) -> None:
        super().__init__()
        self.base, self.expert, self.which = base, expert, which

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for row, flags in zip(x, self.which, strict=True):
            single = [(self.expert if f else self.base)(t) for t, f in zip(row, flags, strict=True)]
            rows.append(torch.stack(single))
        return torch.stack(rows)


def slow_flags(mask: list[list[bool]], boundary: str) -> list[list[bool]]:
    if boundary == "plain":
        return mask
    return [[a and b for a, b in zip(row, [*row[1:], False], strict=True)] for row in mask]


def slow_model(model: Any, flags: list[list[bool]]) -> Any:
    """The base with every wrapped matrix replaced, its tensors shared with `model`."""
    base = model.get_base_model()
    plain = tiny_model(base.config.model_type, num_hidden_layers=2, n_layer=2)
    plain.requires_grad_(False)
    for name, module in base.named_modules():
        if hasattr(module, "expert") and isinstance(module.expert, nn.ModuleDict):
            parent, _, last = name.rpartition(".")
            slow = Slow(module.original_module, module.expert["default"], flags)
            setattr(plain.get_submodule(parent), last, slow)
    return plain


def run(model: Any, leaves: dict[str, Any], ids: torch.Tensor, **inputs: Any) -> list[torch.Tensor]:
    """Logits, and the gradients of the experts and of the embedded input."""
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = model(inputs_embeds=embeds, use_cache=False, **inputs).logits
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    found = torch.autograd.grad(
        (logits * weights).sum(), [embeds, *leaves.values()], allow_unused=True
    )
    zeros = [embeds, *leaves.values()]
    gradients = [torch.zeros_like(z) if g is None else g for g, z in zip(found, zeros, strict=True)]
    return [logits, *gradients]


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    scale = max(tensor.abs().max().item() for tensor in wanted[1:])
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        largest = scale if index else b.abs().max().item()
        assert (a - b).abs().max().item() <= 1e-6 * largest


masks = st.lists(
    st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS), min_size=ROWS, max_size=ROWS
)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gpt2"])
@settings(max_examples=20, deadline=None)
@given(mask=masks, same_mask=st.booleans(), boundary=st.sampled_from(["plain", "cogvlm"]))
def test_forms_equal_the_slow_one(
    family: str, mask: list[list[bool]], same_mask: bool, boundary: str
) -> None:
    mask = [mask[0]] * ROWS if same_mask else mask
    ids, wanted = tokens(ROWS, TOKENS), None
    flags = slow_flags(mask, boundary)
    for form in ("gather", "blend", *(["segments"] if same_mask else [])):
        model = model_of(family, form, boundary)
        leaves = {n: p for n, p in model.named_parameters() if ".expert." in n}
        wanted = wanted or run(slow_model(model, flags), leaves, ids)
        assert_close(run(model, leaves, ids, image_mask=torch.tensor(mask)), wanted)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_runs_cover_the_row_and_alternate(mask: list[bool]) -> None:
    runs = find_runs(torch.tensor(mask))
    assert [kind for a, b, kind in runs for _ in range(a, b)] == mask
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in itertools.pairwise(runs))


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_boundary_wants_two_image_tokens(mask: list[bool]) -> None:
    found = apply_boundary(torch.tensor([mask]), "cogvlm")
    assert found[0].tolist() == slow_flags([mask], "cogvlm")[0]


def released_positions(types: list[int]) -> list[int]:
    """`build_position_ids` of CogVLM's released code, as a loop; it has no padding here."""
    kinds = list(types)
    for i, kind in enumerate(types):
        first = kind == 1 and (i == 0 or types[i - 1] == 0)
        last = kind == 1 and (i == len(types) - 1 or types[i + 1] == 0)
        kinds[i] = 0 if first or last else kind
    positions, now = [0], 0
    for before, here in itertools.pairwise(kinds):
        now += here == 0 or before == 0
        positions.append(now)
    return positions


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_positions_are_those_of_the_released_code(types: list[int]) -> None:
    mask = torch.tensor([types]).bool()
    positions = torch.arange(len(types)) - position_lag(mask, None)[0]
    assert positions.tolist() == released_positions(types)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=8), min_size=1, max_size=4))
def test_packed_samples_are_as_alone(samples: list[list[bool]]) -> None:
    mask = torch.tensor([[flag for sample in samples for flag in sample]])
    positions = torch.tensor([[i for sample in samples for i in range(len(sample))]])
    starts = sample_starts(positions, mask)
    alone = [torch.tensor([sample]) for sample in samples]
    lags = torch.cat([position_lag(sample, None) for sample in alone], dim=1)
    assert torch.equal(position_lag(mask, starts), lags)
    bounded = torch.cat([apply_boundary(sample, "cogvlm") for sample in alone], dim=1)
    assert torch.equal(apply_boundary(mask, "cogvlm", starts), bounded)
