"""A loop of torch alone; run `python bare_loop.py OUT`."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery import apply_plan, load_recipe, plan_recipe, save_adapter

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
plan = plan_recipe(load_recipe("genieblue_skip"), weights=True)
folder = plan.files.folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = apply_plan(plan, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for _ in range(3):
    batch = tokenizer(["A list can be changed in place."], return_tensors="pt")
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{loss.item():.4f}")
save_adapter(plan, model, sys.argv[1])
