"""The peer: the same counts with transformers and peft, no weights loaded.

Usage: python benchmarks/startup/peer.py FOLDER
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

config = AutoConfig.from_pretrained(sys.argv[1])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config)
copied = {f"model.layers.{i}" for i in range(config.num_hidden_layers) if i % 4 == 3}
adapted = [
    name
    for name, _ in model.named_modules()
    if name.rpartition(".")[2] in MATRICES and ".".join(name.split(".")[:3]) not in copied
]
lora = LoraConfig(
    task_type="CAUSAL_LM",
    r=8,
    lora_alpha=16,
    target_modules=adapted,
    modules_to_save=sorted(copied),
)
with torch.device("meta"):
    get_peft_model(model, lora).print_trainable_parameters()
