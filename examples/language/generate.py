"""Answers prompts with the zoo of recipes/language.yaml: each under the task that its prompt resembles.

    python examples/language/generate.py --work build/language

One batch holds prompts of all tasks, from their test files. The base's weights are in memory once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import flexswitch

TASKS = ("describe", "explain", "write")
NEW_TOKENS = 40


def prompts(tokenizer: Any, path: Path, count: int) -> list[str]:
    """Returns the first prompts of a file of examples, as the model reads them."""
    found = []
    for line in path.read_text().splitlines()[:count]:
        example = json.loads(line)
        if "messages" in example:
            options = {"tokenize": False, "add_generation_prompt": True}
            found.append(tokenizer.apply_chat_template(example["messages"][:-1], **options))
        else:
            found.append(example["prompt"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where the models and the zoo are")
    parser.add_argument("--count", type=int, default=2, help="prompts of each task")
    options = parser.parse_args()
    logging.disable_progress_bar()
    base = options.work / "base"
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = flexswitch.SwitchedModel(
        AutoModelForCausalLM.from_pretrained(base).eval(), flexswitch.open_zoo(options.work / "zoo")
    )
    texts = [
        text
        for task in TASKS
        for text in prompts(tokenizer, options.work / "data" / f"{task}.test.jsonl", options.count)
    ]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False))
    weights = model.route(batch)
    tokens = model.generate(batch, weights=weights, max_new_tokens=NEW_TOKENS, do_sample=False)
    answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    for text, shares, answer in zip(texts, weights.tolist(), answers, strict=True):
        chosen = ", ".join(
            f"{task} {share:.0%}" for task, share in zip(model.tasks, shares, strict=True) if share
        )
        print(f"--- {chosen}\n{text.strip()}\n{answer}\n")


if __name__ == "__main__":
    main()
