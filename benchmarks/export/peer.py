"""The peer: load base and adapter with PEFT, merge, save a plain checkpoint, as it is done by hand.

Usage: python benchmarks/export/peer.py MODEL ADAPTER OUT
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

source, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
