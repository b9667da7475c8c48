"""The peer: the same counts with transformers and peft, no weights loaded.

Usage: python benchmarks/startup/peer.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from genieblue import genieblue_skip
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

config = AutoConfig.from_pretrained(sys.argv[1])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config)
    get_peft_model(model, genieblue_skip(model)).print_trainable_parameters()
