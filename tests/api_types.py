"""The public names as a type checker sees them; `make lint` checks it, nothing runs it."""

import surgery

plan: surgery.Plan = surgery.plan_recipe("lora", model="builtin/tiny-qwen2", rank=4)
recipe: surgery.Recipe = surgery.load_recipe("lora", {"rank": 4})
anatomy: surgery.Anatomy = surgery.read_anatomy("builtin/tiny-qwen2")
target: surgery.Target = surgery.load_target("snapdragon")
found: list[surgery.Finding] = surgery.lint_plan(plan, target)
verified: surgery.Verification = surgery.verify_adapter("my-adapter")
version: str = surgery.__version__
surgery.load_adaptor("my-adapter")  # type: ignore[attr-defined]
surgery.verify_adapter(5)  # type: ignore[arg-type]
surgery.export_adapter("my-adapter", "my-export", lroa="keep")  # type: ignore[call-arg]
