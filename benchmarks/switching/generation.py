"""Times `generate` of a switched language model over the base's, and writes docs/benchmarks.md.

    python benchmarks/switching/generation.py

The model and its fine-tunes have random weights, on which no time depends.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flexswitch.merging.switching.switched_model import SwitchedModel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "cuda")]

from batches import medians, weights
from models import VOCABULARY, artifacts, token_ids
from report import machine, table, write_section

BATCHES, TASKS, PROMPT = (1, 16), 8, 16
METHODS: dict[str, dict[str, Any]] = {
    "t-switch, drop 0.6": {"drop": 0.6},
    "t-switch, drop 0.97": {"drop": 0.97},
    "flexswitch, 0.1 %": {"method": "flexswitch", "objective": "none", "target_size": "0.1%"},
}
SETTLED = 8  # batches that are answered before


def language_model(width: int, layers: int) -> LlamaForCausalLM:
    """Returns a language model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    module, body = language_model(options.width, options.layers), []
    size = sum(tensor.numel() for tensor in module.parameters()) / 1e6
    fixed = {"min_new_tokens": options.new_tokens, "max_new_tokens": options.new_tokens, "do_sample": False}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name, settings in METHODS.items():
            found = artifacts(Path(folder) / name, module, TASKS, **settings)
            zoo = {f"task{number}": artifact for number, artifact in enumerate(found)}
            model = SwitchedModel(module, zoo)
            for count in BATCHES:
                ids = token_ids(count, PROMPT, "cpu")
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                asked = [weights(count, TASKS, turn) for turn in range(SETTLED + options.rounds + 1)]
                for turn in range(SETTLED):
                    model.generate(batch, asked[options.rounds + 1 + turn], **fixed)
                seconds = medians(
                    {
                        "base": lambda turn, batch=batch: module.generate(**batch, **fixed),
                        "switched": lambda turn, batch=batch, asked=asked, model=model: model.generate(
                            batch, asked[turn], **fixed
                        ),
                    },
                    options.rounds,
                )
                speeds = [f"{count * options.new_tokens / own:,.0f}" for own in seconds.values()]
                body.append([name, str(count), *speeds, f"{seconds['switched'] / seconds['base']:.2f}×"])
                print(body[-1], flush=True)
    header = ["task vectors", "prompts", "base, tokens/s", "switched, tokens/s", "time of a token"]
    section = f"""## Switching: `generate`

    python benchmarks/switching/generation.py

A Llama of {options.layers} layers of width {options.width} ({size:.1f} M parameters) with random weights,
float32; {TASKS} tasks, prompts of {PROMPT} tokens and {options.new_tokens} new ones, greedily; seven prompts
in ten have one task, the others two, other ones in each of {options.rounds} rounds, whose median counts,
after {SETTLED} other batches. {torch.get_num_threads()} threads. Measured on {machine()}.

{table(header, body)}"""
    write_section("switching-generation", section)
    print(section)


if __name__ == "__main__":
    main()
