"""What `surgery plan --deploy` says, against counts that are written out here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

from surgery.cli import main
from surgery.npu.deployment import PEERS, deployment
from surgery.npu.device_cost import Cost, costs_of
from surgery.npu.target import load_target
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe

# Qwen2.5-3B by its config (see reference/models.md), bytes at 4 bits, norms and biases in fp16
MATRICES = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008
VECTORS = 2048 + 2 * 256 + 2 * 2048
BLOCK = MATRICES // 2 + 2 * VECTORS
LLM = 36 * BLOCK + 151936 * 2048 // 2 + 2 * 2048
LORA = 415_744
CACHE = 2048 * 36 * 2 * 256 * 2
BANDWIDTH = 84.8e9


def costs(recipe: str, model: str = "builtin/qwen2.5-3b", *words: str) -> list[Cost]:
    return costs_of(plan_recipe(load_recipe(recipe, [f"model={model}", *words])), 2048, BANDWIDTH)


def test_genieblue_swaps_nine_blocks_and_adds_lora() -> None:
    unshared, shared = costs("genieblue_skip")
    beside = 27 * LORA
    assert unshared.storage == LLM + 9 * BLOCK + beside
    assert shared.storage == LLM + beside
    assert unshared.text_memory == LLM + CACHE
    assert unshared.multimodal_memory == shared.text_memory == LLM + beside + CACHE
    assert unshared.switch == 9 * BLOCK + beside
    assert shared.switch == 0
    assert unshared.text_speed == pytest.approx(BANDWIDTH / (LLM + CACHE))
    assert unshared.multimodal_speed == pytest.approx(BANDWIDTH / (LLM + beside + CACHE))


def test_the_others_hold_what_they_add() -> None:
    full, full_shared = costs("full_finetune")
    assert full.storage == 2 * LLM
    assert full.switch == full_shared.storage == LLM
    lora, lora_shared = costs("lora")
    assert lora.storage == lora_shared.storage == LLM + 36 * LORA
    cogvlm, _ = costs("cogvlm_skip")
    expert = 9 * (MATRICES // 2 + 2 * (2048 + 512))
    assert cogvlm.storage == LLM + expert + 27 * LORA
    assert cogvlm.multimodal_memory == cogvlm.storage + CACHE
    assert cogvlm.multimodal_speed == costs("genieblue_skip")[0].multimodal_speed


def test_vision_is_on_the_multimodal_path_alone() -> None:
    tower = ("vision=builtin/siglip-so400m-patch14-384", "projector=mlp_downsample")
    blind, seeing = (
        costs("genieblue_skip")[0],
        costs("genieblue_skip", "builtin/qwen2.5-3b", *tower)[0],
    )
    more = seeing.storage - blind.storage
    assert 441_870_400 < more < 1.01 * 441_870_400  # W8: a byte each, vectors two
    assert seeing.multimodal_memory - blind.multimodal_memory == more
    assert seeing.text_memory == blind.text_memory


def test_an_embedding_apart_from_the_head_is_not_read() -> None:
    """BlueLM-3B's are not tied: a token reads one row of the embedding."""
    cost = costs("lora", "builtin/bluelm-3b")[0]
    assert cost.text_speed == pytest.approx(BANDWIDTH / (cost.text_memory - 100_096 * 2560 // 2))


def test_the_papers_table_stands_beside_the_same_model_by_arithmetic() -> None:
    found = deployment(plan_recipe(load_recipe("wings")), load_target("snapdragon"))
    before, after = found.measured
    assert (before.storage, after.storage) == (1.77e9, 1.92e9)
    assert before.arithmetic.storage == pytest.approx(1.80e9, rel=0.01)
    assert after.arithmetic.storage == pytest.approx(2.09e9, rel=0.01)
    assert any("+0.15 GB" in s and "+0.28 GB" in s for s in found.disagreements)
    assert any("+0.37 GB" in s and "+0.01 GB" in s for s in found.disagreements)
    assert [cost.recipe for cost in found.costs[::2]] == ["wings", *PEERS]


def test_a_peer_that_does_not_go_on_a_model_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """Packed weights can't train, so that only LoRA goes on them."""
    base = save_tiny(tmp_path / "base")
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **packed}))
    plan = plan_recipe(load_recipe("lora", [f"model={base}"]))
    found = deployment(plan, load_target("snapdragon"))
    assert {"full_finetune", "genieblue_skip"} <= found.left_out.keys()
    assert {cost.recipe for cost in found.costs} == {*PEERS} - found.left_out.keys()
    assert "gptq" in found.left_out["genieblue_skip"]


@pytest.mark.parametrize("target", ["snapdragon", "dimensity"])
def test_table_and_json_say_the_same(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["plan", "genieblue_skip", "model=builtin/qwen2.5-3b", "--deploy", "--target", target]
    printed = []
    for more in (["--format", "json"], []):
        monkeypatch.setattr(sys, "argv", ["surgery", *words, *more])
        with pytest.raises(SystemExit):
            main()
        printed.append(capsys.readouterr().out)
    document, table = json.loads(printed[0]), printed[1]
    assert document["scheme"] == "w4a16"
    assert document["context"] == 2048
    assert len(document["costs"]) == 2 * len(PEERS)
    genieblue = document["costs"][-2]
    assert genieblue["storage"] == LLM + 9 * BLOCK + 27 * LORA
    assert "1.9 GB" in table
    assert ("52.4" in table) == (target == "snapdragon")
    assert (genieblue["text_speed"] is None) == (target == "dimensity")
    for sentence in document["disagreements"]:
        assert sentence in table


def test_an_export_holds_more_than_a_device_has_to() -> None:
    """Weights of prompt and answer, and fp32 embeddings; measured: 1.94 GB of binaries a phase."""
    unshared, shared = (cost.exported for cost in costs("genieblue_skip"))
    assert unshared is not None
    assert shared is not None
    embeddings, head = 4 * 151936 * 2048, 151936 * 2048 // 2
    binaries = unshared.device - embeddings - 4 * 27 * LORA
    assert (binaries + head) / 2 == pytest.approx(1.94e9, rel=0.01)
    assert unshared.device - shared.device == pytest.approx(2 * 9 * BLOCK, rel=0.03)
    assert unshared.reference == pytest.approx(2 * 45 * BLOCK + head, rel=0.01)


@pytest.mark.parametrize("recipe", ["cogvlm_skip", "full_finetune", "wings"])
def test_what_the_form_does_not_take_has_no_bytes(recipe: str) -> None:
    assert [cost.exported for cost in costs(recipe)] == [None, None]


def test_the_table_goes_into_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = ["plan", "genieblue_skip", "model=builtin/qwen2.5-3b", "--deploy"]
    monkeypatch.setattr(sys, "argv", ["surgery", *words])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith(("recipe", *PEERS))]
    assert len(rows) == 2 * (1 + 2 * len(PEERS))
    assert max(map(len, rows)) <= 80
    assert "5.01 GB" in text
    assert "…" not in text
