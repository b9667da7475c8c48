"""GenieBlue-Skip as it is written by hand with peft, for the peers of several benchmarks."""

from typing import Any

from peft import LoraConfig

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def genieblue_skip(model: Any) -> LoraConfig:
    """Return the config that copies the last block of every four and puts LoRA on the others.

    Args:
        model: a decoder whose blocks lie at `model.layers`, with Llama's names inside.
    """
    blocks = range(model.config.num_hidden_layers)
    copied = {f"model.layers.{i}" for i in blocks if i % 4 == 3}
    adapted = [
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in MATRICES and ".".join(name.split(".")[:3]) not in copied
    ]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        target_modules=adapted,
        modules_to_save=sorted(copied),
    )
