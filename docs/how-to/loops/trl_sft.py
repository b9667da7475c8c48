"""TRL's SFTTrainer, which needs `pip install trl`; run `python trl_sft.py OUT`."""

import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from surgery import apply_plan, load_recipe, plan_recipe, save_adapter

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
plan = plan_recipe(load_recipe("genieblue_skip"), weights=True)
folder = plan.files.folder
model = apply_plan(plan, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
rows = Dataset.from_dict({"text": ["A list can be changed in place."] * 6})
with tempfile.TemporaryDirectory() as work:
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            work,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            max_steps=3,
            logging_steps=1,
            report_to="none",
            bf16=False,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            gradient_checkpointing=False,
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
save_adapter(plan, model, sys.argv[1])
