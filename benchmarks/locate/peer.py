"""The peer: build the model of each type's default config on the meta device, and nothing else.

Usage: python benchmarks/locate/peer.py TYPE,TYPE,… PROCESSES

A fresh fork for each type, as in the conformance suite. Prints the types that it cannot build.
"""

import json
import multiprocessing as mp
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401  before the forks
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def build(model_type: str) -> str:
    """Return the type where it cannot be built."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type]())
    except Exception:  # of any kind: the type is counted, its reason is in the suite's table
        return model_type
    return ""


if __name__ == "__main__":
    with mp.get_context("fork").Pool(int(sys.argv[2]), maxtasksperchild=1) as pool:
        failed = pool.map(build, sys.argv[1].split(","), chunksize=1)
    print(json.dumps([name for name in failed if name]))
