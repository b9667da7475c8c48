"""Trains `builtin/tiny-qwen2`: tokenizer, weights, held-out text, figures and card.

    python scripts/train_tiny_qwen2.py --steps 4500

The folder is usable from the first evaluation on: the best checkpoint so far is always saved there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tiny_qwen2_card import Figures, Ids, encode, measure, score, write_card
from tiny_qwen2_corpus import Corpus, Document, psf_licence, read_corpus, to_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

VOCABULARY = 2048
SPECIAL = ["<|pad|>", "<|bos|>", "<|endoftext|>", "<|image|>"]
PAD, BOS, EOS = 0, 1, 2
CROPS = ((8, 256), (2, 1024))  # (rows, tokens); the second in every LONG_EVERY-th step
LONG_EVERY = 8
WARMUP = 200
WEIGHT_DECAY = 0.1
FINAL_SHARE = 0.05  # of the peak learning rate
TOKENIZER_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": "<|bos|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|pad|>",
    "unk_token": "<|endoftext|>",
    "additional_special_tokens": ["<|image|>"],
    "model_max_length": CROPS[1][1],
    "add_prefix_space": False,
    "clean_up_tokenization_spaces": False,
}
DEFAULT_OUT = Path(__file__).parents[1] / "surgery" / "model" / "builtin" / "tiny-qwen2"

Loss = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Trains and measures, or measures what is there."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    corpus = read_corpus()
    if args.score_only:
        training = json.loads((args.out / "figures.json").read_text())["training"]
    else:
        _write_text(args.out, corpus)
        training = train(args, corpus, train_tokenizer(args.out, corpus.training))
    figures = measure(args.out, corpus, training)
    write_card(args.out, figures)
    print(json.dumps(figures["heldout"] | figures["baselines"], indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5e-3, help="peak learning rate")
    parser.add_argument("--topics-share", type=float, default=0.25, help="1 trains on topics alone")
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--patience", type=int, default=3, help="evaluations without a better one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score-only", action="store_true", help="measure, and rewrite the card")
    return parser.parse_args()


def _write_text(out: Path, corpus: Corpus) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "heldout.jsonl").write_text(to_jsonl(corpus.heldout))
    (out / "LICENSE-heldout.txt").write_text(
        "heldout.jsonl holds topics of the Python manual, unchanged, from pydoc_data.topics.\n"
        "Copyright © 2001-2023 Python Software Foundation; All Rights Reserved\n\n" + psf_licence()
    )


def train_tokenizer(out: Path, documents: list[Document]) -> Any:
    """Fits a byte-level BPE on `documents`, saves it in `out`, and opens it as a user would.

    `AutoTokenizer` replaces the splitting rules of any `qwen2` checkpoint by Qwen2's own, so those
    are the rules to fit with.
    """
    rules = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.decoder = rules.normalizer, rules.decoder
    tokenizer.pre_tokenizer = rules.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)]
    )
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    new_model().config.save_pretrained(out)
    return AutoTokenizer.from_pretrained(out)


def new_model() -> Qwen2ForCausalLM:
    """A Qwen2 decoder of 12 blocks with fresh fp32 weights."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CROPS[1][1],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return Qwen2ForCausalLM(config)


def train(args: argparse.Namespace, corpus: Corpus, tokenizer: Any) -> Figures:
    """Trains, saves the best checkpoint by dev perplexity, and returns how it went."""
    torch.manual_seed(args.seed)
    model = new_model()
    optimizer, schedule = _optimizer(model, args)
    batches = _batches(args, encode(tokenizer, corpus.topics), encode(tokenizer, corpus.extra))
    dev, heldout = encode(tokenizer, corpus.dev), encode(tokenizer, corpus.heldout)
    loss_of, best, best_step, start = _loss_function(model), math.inf, 0, time.monotonic()
    for step in range(1, args.steps + 1):
        loss = _step(model, optimizer, loss_of(next(batches)))
        schedule.step()
        if step % args.evaluate_every == 0 or step == args.steps:
            dev_loss = _evaluate(model, dev)
            if dev_loss < best:
                best, best_step = dev_loss, step
                save(model, args.out)
            scores = [math.exp(dev_loss), math.exp(_evaluate(model, heldout))]
            text = "loss {:.3f}  dev {:.3f}  held-out {:.3f}  best at {}"
            _report(step, args.steps, start, text.format(loss, *scores, best_step))
            if step - best_step >= args.patience * args.evaluate_every:
                break
        elif step % 50 == 0:
            _report(step, args.steps, start, f"loss {loss:.3f}")
    return _record(args, step, best_step, time.monotonic() - start)


def _optimizer(model: torch.nn.Module, args: argparse.Namespace) -> tuple[Any, Any]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=True)

    def share(step: int) -> float:
        done = min(1.0, step / args.steps)
        cosine = FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2
        return min(1.0, (step + 1) / WARMUP) * cosine

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _batches(
    args: argparse.Namespace, manual: list[Ids], extra: list[Ids]
) -> Iterator[torch.Tensor]:
    """Random crops without end, `topics_share` of them from the manual; [rows x tokens]."""
    streams = [torch.tensor([i for ids in part for i in ids]) for part in (manual, extra)]
    generator = torch.Generator().manual_seed(args.seed)
    step = 0
    while True:
        step += 1
        rows, length = CROPS[step % LONG_EVERY == 0]
        choices = (torch.rand(rows, generator=generator) >= args.topics_share).long().tolist()
        crops = []
        for choice in choices:
            last = len(streams[choice]) - length
            first = int(torch.randint(last + 1, (1,), generator=generator))
            crops.append(streams[choice][first : first + length])
        yield torch.stack(crops)


def _loss_function(model: Any) -> Loss:
    """The compiled mean cross entropy of a batch, under bf16 autocast."""

    def loss(ids: torch.Tensor) -> torch.Tensor:
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss, dynamic=False)

    def autocast(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(ids)

    return autocast


def _step(model: torch.nn.Module, optimizer: Any, loss: torch.Tensor) -> float:
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _evaluate(model: Any, documents: list[Ids]) -> float:
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss = score(model, documents)
    model.train()
    return loss


def save(model: Qwen2ForCausalLM, out: Path) -> None:
    """Saves a bf16 copy of the weights, with its configs, in `out`."""
    copy = Qwen2ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


def _report(step: int, steps: int, start: float, text: str) -> None:
    elapsed = time.monotonic() - start
    speed = step * CROPS[0][0] * CROPS[0][1] / elapsed
    left = elapsed / step * (steps - step) / 60
    print(f"step {step}/{steps}  {text}  {speed:,.0f} tokens/s  {left:.1f} min left", flush=True)


def _record(args: argparse.Namespace, step: int, best_step: int, seconds: float) -> Figures:
    options = f"--steps {args.steps} --seed {args.seed} --rate {args.rate:g}"
    options += f" --topics-share {args.topics_share:g} --evaluate-every {args.evaluate_every}"
    options += f" --patience {args.patience}"
    return {
        "command": f"python scripts/train_tiny_qwen2.py {options}",
        "steps": args.steps,
        "steps_done": step,
        "best_step": best_step,
        "tokens_per_step": CROPS[0][0] * CROPS[0][1],
        "minutes": seconds / 60,
        "threads": args.threads,
        "seed": args.seed,
        "patience": args.patience,
        "rate": args.rate,
        "warmup": WARMUP,
        "weight_decay": WEIGHT_DECAY,
        "topics_share": args.topics_share,
    }


if __name__ == "__main__":
    main()
