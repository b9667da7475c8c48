"""`make demo`: operate on the built-in trained model, verify it, and train what was added.

Everything is real: a 12-block qwen2 decoder trained on the manual of Python, copied blocks, LoRA,
forty optimizer steps. It takes about a minute on two cores, once everything is installed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.markdown import Markdown

from surgery.cli.views.terminal import PlainConsole

TEXT = "A walrus keeps its hat in the fridge. A walrus keeps its shoes in the bath. " * 4
PROMPT = "A walrus keeps its"
STEPS = 40

console = PlainConsole()


def run(*words: str) -> None:
    """Show a command as a user would type it, and run it."""
    console.print(f"\n$ surgery {' '.join(words)}", style="bold cyan", soft_wrap=True)
    subprocess.run([sys.executable, "-m", "surgery", *words], check=True)


def train(model: torch.nn.Module, ids: torch.Tensor) -> list[float]:
    """Train what the plan trains, with a bare loop; return the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def say(model: torch.nn.Module, tokenizer: object) -> str:
    """Greedy continuation of the prompt on the path of the context."""
    prompt = tokenizer(PROMPT, return_tensors="pt")  # type: ignore[operator]
    tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)  # type: ignore[operator]
    return repr(tokenizer.decode(tokens[0], skip_special_tokens=True))  # type: ignore[attr-defined]


def main() -> None:
    """Run the story from a recipe to two paths, in a folder of its own that stays."""
    out = Path(tempfile.mkdtemp(prefix="surgery-demo-")) / "adapter"
    console.print(Markdown("# surgery: from a recipe to a verified adapter"))
    run("inspect", "builtin/tiny-qwen2")
    run("plan", "genieblue_skip")
    run("apply", "genieblue_skip", "--out", str(out))
    run("verify", str(out))

    said = f"Train what was added for {STEPS} steps, in a bare loop"
    console.print(f"\n{said}", style="bold cyan")
    from transformers import AutoTokenizer

    from surgery import find_model, load_adapter, text_path
    from surgery.model.quiet import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(find_model("builtin/tiny-qwen2").folder)
        model = load_adapter(out, trainable=True)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with text_path(model), torch.no_grad():
        before = model(input_ids=ids).logits
    losses = train(model, ids)
    with text_path(model), torch.no_grad():
        after = model(input_ids=ids).logits
        text = say(model, tokenizer)
    console.print(f"multimodal path: loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    console.print(f"text path: bit for bit as before: {torch.equal(before, after)}")
    console.print(f"multimodal path says {say(model, tokenizer)}")
    console.print(f"text path says       {text}")
    console.print(f"\nThe adapter is in {out}; plain `peft` opens it too (see its README.md).")
    if not torch.equal(before, after):
        sys.exit(1)


if __name__ == "__main__":
    main()
