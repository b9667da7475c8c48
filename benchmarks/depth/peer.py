"""The peer: load the model, copy every fourth block behind itself, save, as it is done by hand.

Usage: python benchmarks/depth/peer.py MODEL OUT
"""

import copy
import sys

import torch
from torch import nn
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
config = model.config
blocks, types = nn.ModuleList(), []
for i, block in enumerate(model.model.layers):
    wanted = [block, copy.deepcopy(block)] if i % 4 == 3 else [block]
    types += [config.layer_types[i]] * len(wanted)
    blocks.extend(wanted)
for i, block in enumerate(blocks):
    block.self_attn.layer_idx = i
model.model.layers = blocks
config.num_hidden_layers, config.layer_types = len(blocks), types
model.save_pretrained(sys.argv[2])
