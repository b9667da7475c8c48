"""The Hugging Face Trainer; run `python hf_trainer.py OUT`."""

import sys
import tempfile

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from surgery import apply_plan, load_recipe, plan_recipe, save_adapter

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
plan = plan_recipe(load_recipe("genieblue_skip"), weights=True)
folder = plan.files.folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = apply_plan(plan, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
rows = [tokenizer("A list can be changed in place.") for _ in range(6)]
with tempfile.TemporaryDirectory() as work:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            work,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            max_steps=3,
            logging_steps=1,
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
save_adapter(plan, model, sys.argv[1])
