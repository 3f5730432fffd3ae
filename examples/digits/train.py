"""Fine-tunes a small vision transformer on six tasks over handwritten digits, in about a minute.

    python examples/digits/train.py --out DIR

`DIR/base` knows the ten digits as they are. Each task shows them in another look and asks something
else about them; `DIR/<task>` is the base fine-tuned on it, with a head of its own (`classifier.weight`,
`classifier.bias`). `DIR/data/<task>.train.npz` and `.test.npz` hold what the models take: `x` float32
(picture, 1, 8, 8) and `y` int64 (picture,). What exists in DIR is not made again.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel, get_linear_schedule_with_warmup
from transformers.utils import logging

BATCH_SIZE = 64
PRETRAIN_EPOCHS = 20
PRETRAIN_RATE = 1e-3
TUNE_EPOCHS = 10
TUNE_RATE = 5e-4
HEAD_RATE = 2e-3
PIXEL_NOISE = 0.15
LABEL_SMOOTHING = 0.1

ROWS = torch.arange(8).unsqueeze(1)  # (8, 1)
STRIPES = 1.0 - 2 * (ROWS % 2)  # (8, 1), 1 or -1
SQUARES = 1.0 - 2 * ((ROWS + ROWS.T) % 2)  # (8, 8), 1 or -1


class Task(NamedTuple):
    """What a task makes of pictures and digits, and the names of its classes."""

    look: Callable[[Tensor], Tensor]  # (picture, 1, 8, 8) -> the same
    label: Callable[[Tensor], Tensor]  # (picture,) -> the same
    classes: list[str]


def same(value: Tensor) -> Tensor:
    """Returns its argument."""
    return value


def is_one_of(*chosen: int) -> Callable[[Tensor], Tensor]:
    """Returns a function that gives class 1 to the chosen digits and class 0 to the others."""
    return lambda digits: torch.isin(digits, torch.tensor(chosen)).long()


# Every task has its own look: a router sees pictures only, never the question.
TASKS = {
    "upright": Task(same, lambda digits: digits % 2, ["even", "odd"]),
    "turned": Task(lambda pictures: pictures.rot90(1, (2, 3)), same, list("0123456789")),
    "negative": Task(torch.neg, same, list("0123456789")),
    "chequered": Task(
        lambda pictures: (pictures + SQUARES) / 2, is_one_of(5, 6, 7, 8, 9), ["small", "large"]
    ),
    "striped": Task(lambda pictures: pictures * STRIPES, is_one_of(0, 6, 8, 9), ["open", "loop"]),
    "mosaic": Task(lambda pictures: pictures * SQUARES, is_one_of(2, 3, 5, 7), ["other", "prime"]),
}


def load_split(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns train and test pictures (picture, 1, 8, 8) in -1 ... 1, then train and test digits."""
    pictures, digits = load_digits(return_X_y=True)
    pictures = pictures.reshape(-1, 1, 8, 8).astype(np.float32) / 8 - 1
    parts = train_test_split(pictures, digits, test_size=1 / 3, stratify=digits, random_state=seed)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return train_x, test_x, train_y, test_y


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a directory and gives it its name only when it is complete."""
    unfinished = path.with_name(f"{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write(unfinished)
    unfinished.rename(path)


def write_data(seed: int, directory: Path) -> None:
    """Writes the train and test pictures of every task as `.npz` files."""
    train_x, test_x, train_y, test_y = load_split(seed)
    for name, task in TASKS.items():
        for part, pictures, digits in (("train", train_x, train_y), ("test", test_x, test_y)):
            x = task.look(pictures).contiguous().numpy()
            y = task.label(digits).numpy()
            np.savez_compressed(directory / f"{name}.{part}.npz", x=x, y=y)


def read_data(path: Path) -> tuple[Tensor, Tensor]:
    """Returns the pictures (picture, 1, 8, 8) and labels (picture,) of one `.npz` file."""
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def first_token(hidden: Tensor) -> Tensor:
    """Returns what ViTForImageClassification gives to its head, (picture, width)."""
    return hidden[:, 0]


def mean_token(hidden: Tensor) -> Tensor:
    """Returns the mean over the tokens, (picture, width)."""
    return hidden.mean(1)


def fit(
    encoder: nn.Module,
    head: nn.Module,
    pool: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    rate: float,
) -> None:
    """Trains all weights of encoder and head in place.

    There is no weight decay: it would put into the task vector what the task did not ask for.
    """
    parameters = [*encoder.parameters(), *head.parameters()]
    groups = [
        {"params": list(encoder.parameters()), "lr": rate},
        {"params": list(head.parameters()), "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    step_count = epochs * -(-len(x) // BATCH_SIZE)
    schedule = get_linear_schedule_with_warmup(optimizer, step_count // 10, step_count)
    encoder.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(x)), BATCH_SIZE):
            # Noise and soft labels: 1200 pictures are few, and a sure model bears no change of its weights.
            noisy = x[batch] + PIXEL_NOISE * torch.randn_like(x[batch])
            hidden = encoder(pixel_values=noisy).last_hidden_state  # (batch, token, width)
            logits = head(pool(hidden))  # (batch, class)
            loss = nn.functional.cross_entropy(logits, y[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    encoder.eval()


def pretrain(seed: int, directory: Path) -> None:
    """Trains the encoder on the digits as they are and saves it without its head."""
    pictures, _, digits, _ = load_split(seed)
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=96, intermediate_size=192,
        num_hidden_layers=4, num_attention_heads=4,
    )  # fmt: skip
    encoder = ViTModel(config, add_pooling_layer=False)
    head = nn.Linear(config.hidden_size, 10)
    # With the mean every token learns digits, a better start than a first token that learns alone.
    fit(encoder, head, mean_token, pictures, digits, epochs=PRETRAIN_EPOCHS, rate=PRETRAIN_RATE)
    encoder.save_pretrained(directory)


def fine_tune(out: Path, seed: int, name: str) -> str:
    """Trains base and a new head on one task, saves both and returns a line for the reader."""
    started = time.monotonic()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    classes = dict(enumerate(TASKS[name].classes))
    model = ViTForImageClassification.from_pretrained(
        out / "base", id2label=classes, label2id={label: index for index, label in classes.items()}
    )
    x, y = read_data(out / "data" / f"{name}.train.npz")
    fit(model.vit, model.classifier, first_token, x, y, epochs=TUNE_EPOCHS, rate=TUNE_RATE)
    x, y = read_data(out / "data" / f"{name}.test.npz")
    with torch.inference_mode():
        right = model(pixel_values=x).logits.argmax(-1) == y  # (picture,)
    save_whole(out / name, model.save_pretrained)
    return f"{name:10} {right.float().mean():.1%} right in {time.monotonic() - started:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where models and data go")
    parser.add_argument("--threads", type=int, default=2, help="tasks trained at a time, each on one thread")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out: Path = options.out
    missing = [name for name in TASKS if not (out / name).exists()]
    if not missing and (out / "base").exists() and (out / "data").exists():
        print(f"{out} is complete")
        return

    out.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    # One thread a model: these tensors are too small to share, and results stay the same on any machine.
    torch.set_num_threads(1)
    if not (out / "data").exists():
        save_whole(out / "data", partial(write_data, options.seed))
    if not (out / "base").exists():
        started = time.monotonic()
        save_whole(out / "base", partial(pretrain, options.seed))
        print(f"base       pre-trained in {time.monotonic() - started:.0f} s", flush=True)
    with ProcessPoolExecutor(options.threads, mp_context=get_context("spawn")) as pool:
        for line in pool.map(partial(fine_tune, out, options.seed), missing):
            print(line, flush=True)


if __name__ == "__main__":
    main()
