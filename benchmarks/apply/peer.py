"""The peer: load the model, wrap it with PEFT, save the adapter, as it is done by hand.

Usage: python benchmarks/apply/peer.py MODEL OUT
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
blocks = range(model.config.num_hidden_layers)
copied = {f"model.layers.{i}" for i in blocks if i % 4 == 3}
adapted = [
    name
    for name, _ in model.named_modules()
    if name.rpartition(".")[2] in MATRICES and ".".join(name.split(".")[:3]) not in copied
]
config = LoraConfig(
    task_type="CAUSAL_LM",
    r=8,
    lora_alpha=16,
    target_modules=adapted,
    modules_to_save=sorted(copied),
)
get_peft_model(model, config).save_pretrained(sys.argv[2])
