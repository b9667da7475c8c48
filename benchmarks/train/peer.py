"""GenieBlue-Skip by hand, with PEFT alone: what somebody writes who knows how."""

from typing import Any

from peft import LoraConfig, get_peft_model

LINEAR = (
    *(f"self_attn.{role}_proj" for role in "qkvo"),
    *(f"mlp.{role}_proj" for role in ("gate", "up", "down")),
)


def peft_genieblue(base: Any) -> Any:
    """The last block of every four copied, LoRA of rank 8 on the others."""
    count = len(base.model.layers)
    copied = [f"model.layers.{i}" for i in range(count) if (i + 1) % 4 == 0]
    others = [f"model.layers.{i}" for i in range(count) if (i + 1) % 4]
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=[f"{block}.{name}" for block in others for name in LINEAR],
        modules_to_save=copied,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)
