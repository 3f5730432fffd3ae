"""Trains a small language model on the standard library's sources, and fine-tunes it on three tasks.

    python examples/language/train.py --out DIR

`DIR/base` is a model of the text of Python's own modules, with a byte-pair tokenizer of that text; it has
seen a few examples of every task, as the models that people fine-tune have. Each task is about the functions
of these modules, with prompts and answers of its own; `DIR/<task>` is the base fine-tuned on it, in the upper
two of its four layers. `DIR/data/<task>.train.jsonl` and `.test.jsonl` hold the examples; a module's
functions are all in the one or all in the other. What exists in DIR is not made again.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from library_tasks import TASKS, is_test, library_files, write_data  # in the folder of this script
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

LENGTH = 128  # tokens
WORDS = 2048
BATCH_SIZE = 16
BASE_STEPS, BASE_RATE = 600, 2e-3
MIX_ROUNDS, MIX_STEPS, MIX_RATE = 2, 100, 1e-3
TUNE_STEPS, TUNE_RATE, TUNED_LAYERS = 100, 8e-4, ("layers.2.", "layers.3.")
END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a directory and gives it its name only when it is complete."""
    unfinished = path.with_name(f"{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write(unfinished)
    unfinished.rename(path)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of these texts, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [END, PAD, USER, ASSISTANT]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[USER, ASSISTANT], model_max_length=LENGTH,
    )  # fmt: skip


def fit(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float) -> None:
    """Trains the weights that need gradients in place.

    batches: tokens and targets, both (sample, token), a target -100 where there is none.
    There is no weight decay: it would put into the task vector what the task did not ask for.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    for step, (tokens, targets) in zip(range(steps), batches, strict=False):
        logits = model(input_ids=tokens).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"{step + 1:5} steps, loss {loss.item():.2f}", flush=True)
    model.eval()


def passages(tokens: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of passages that begin anywhere in a long text, (token,)."""
    while True:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH_SIZE, 1), generator=generator)
        batch = tokens[starts + torch.arange(LENGTH)]
        yield batch, batch


def pretrain(data: Path, seed: int, directory: Path) -> None:
    """Makes the tokenizer, trains the base on the library's train modules and saves both."""
    texts = [path.read_text(encoding="utf-8") for path in library_files() if not is_test(path)]
    tokenizer = make_tokenizer(texts)
    tokens = torch.tensor(
        [token for text in texts for token in (*tokenizer(text, verbose=False)["input_ids"], 0)]
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=LENGTH,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=1,
        )
    )  # fmt: skip
    fit(model, passages(tokens, torch.Generator().manual_seed(seed)), BASE_STEPS, BASE_RATE)
    examples = [
        example for task in TASKS for example in read_examples(tokenizer, data / f"{task}.train.jsonl")
    ]
    for number in range(MIX_ROUNDS):
        fit(model, shuffled(examples, seed + number), MIX_STEPS, MIX_RATE)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def prompt_and_answer(tokenizer: Any, example: dict[str, Any]) -> tuple[str, str]:
    """Returns an example's prompt and its answer with the token that ends it, as the model reads them."""
    if "messages" not in example:
        return example["prompt"], example["completion"] + END
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    prompt = render(example["messages"][:-1], add_generation_prompt=True)
    return prompt, render(example["messages"]).removeprefix(prompt)


def read_examples(tokenizer: Any, path: Path) -> list[tuple[Tensor, Tensor]]:
    """Returns tokens and targets, (token,), of each example of a file; targets are the answers alone."""
    found = []
    for line in path.read_text().splitlines():
        prompt, answer = prompt_and_answer(tokenizer, json.loads(line))
        encoded = tokenizer(prompt + answer, truncation=True, return_offsets_mapping=True)
        tokens = torch.tensor(encoded["input_ids"])
        ends = torch.tensor([end for _, end in encoded["offset_mapping"]])
        found.append((tokens, torch.where(ends > len(prompt), tokens, -100)))
    return found


def padded(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Returns tokens and targets of several examples, (sample, token)."""
    tokens, targets = zip(*examples, strict=True)
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return pad(tokens, padding_value=1), pad(targets, padding_value=-100)


def shuffled(examples: list[tuple[Tensor, Tensor]], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of examples, every pass in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator)
        for rows in torch.split(order, BATCH_SIZE):
            yield padded([examples[row] for row in rows])


@torch.inference_mode()
def perplexity(model: nn.Module, examples: list[tuple[Tensor, Tensor]]) -> float:
    """Returns the perplexity of the examples' answers."""
    losses, count = 0.0, 0
    for start in range(0, len(examples), BATCH_SIZE):
        tokens, targets = padded(examples[start : start + BATCH_SIZE])
        logits = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        losses += float(nn.functional.cross_entropy(logits, targets[:, 1:].flatten(), reduction="sum"))
        count += int((targets[:, 1:] != -100).sum())
    return math.exp(losses / count)


def distance(base: nn.Module, tuned: nn.Module) -> float:
    """Returns the norm of what fine-tuning changed over the norm of the base's weights."""
    before, after = base.state_dict(), tuned.state_dict()
    squares = [
        (float((after[name] - value).square().sum()), float(value.square().sum()))
        for name, value in before.items()
    ]
    return math.sqrt(sum(change for change, _ in squares) / sum(whole for _, whole in squares))


def fine_tune(out: Path, seed: int, task: str) -> str:
    """Trains the base on one task, saves it and returns a line for the reader."""
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(out / "base")
    base = AutoModelForCausalLM.from_pretrained(out / "base").eval()
    model = AutoModelForCausalLM.from_pretrained(out / "base")
    test = read_examples(tokenizer, out / "data" / f"{task}.test.jsonl")
    train = read_examples(tokenizer, out / "data" / f"{task}.train.jsonl")
    for name, parameter in model.named_parameters():  # the lower layers stay as they are
        parameter.requires_grad_(any(layer in name for layer in TUNED_LAYERS))
    fit(model, shuffled(train, seed), TUNE_STEPS, TUNE_RATE)
    save_whole(out / task, model.save_pretrained)
    return (
        f"{task:10} answers' perplexity {perplexity(base, test):.2f} → {perplexity(model, test):.2f}, "
        f"weights changed by {distance(base, model):.1%} of their norm, in {time.monotonic() - started:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where models and data go")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out: Path = options.out
    missing = [task for task in TASKS if not (out / task).exists()]
    if not missing and (out / "base").exists() and (out / "data").exists():
        print(f"{out} is complete")
        return

    out.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    if not (out / "data").exists():
        save_whole(out / "data", write_data)
    if not (out / "base").exists():
        started = time.monotonic()
        save_whole(out / "base", partial(pretrain, out / "data", options.seed))
        print(f"base       trained in {time.monotonic() - started:.0f} s", flush=True)
    for task in missing:
        print(fine_tune(out, options.seed, task), flush=True)


if __name__ == "__main__":
    main()
