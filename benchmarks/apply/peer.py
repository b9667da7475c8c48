"""The peer: load the model, wrap it with PEFT, save the adapter, as it is done by hand.

Usage: python benchmarks/apply/peer.py MODEL OUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from genieblue import genieblue_skip
from peft import get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
get_peft_model(model, genieblue_skip(model)).save_pretrained(sys.argv[2])
