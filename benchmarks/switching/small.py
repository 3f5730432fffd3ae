"""Times a small switched model, in which calls weigh more than products, and writes docs/benchmarks.md.

python examples/digits/train.py --out build/digits
python benchmarks/switching/small.py --models build/digits
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification
from transformers.utils import logging

import flexswitch
from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.switching.switched_model import SwitchedModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from batches import medians, weights
from report import machine, table, write_section

BATCHES = (1, 16, 64, 256)
ENGINES = {"switched": "auto", "fused": "fused", "merged": "merged", "grouped": "grouped"}
DROP = 0.6
SETTLED = 12  # batches that are answered before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="made by examples/digits/train.py")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    logging.set_verbosity_error()  # of heads that the base does not have
    logging.disable_progress_bar()
    base = options.models / "base"
    tasks = sorted({path.parent.name for path in options.models.glob("*/config.json")} - {"base"})
    module = AutoModelForImageClassification.from_pretrained(base, num_labels=10).eval()
    size = sum(tensor.numel() for tensor in module.parameters()) / 1e6
    body = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        zoo = {}
        for task in tasks:
            path = Path(folder) / f"{task}.fsw"
            flexswitch.compress(options.models / task, path, base=base, settings={"drop": DROP})
            zoo[task] = open_artifact(path)
        models = {way: SwitchedModel(module, zoo, engine=engine) for way, engine in ENGINES.items()}
        for mixed in (False, True):
            for count in BATCHES:
                batch = {"pixel_values": torch.randn(count, 1, 8, 8)}
                asked = [weights(count, len(tasks), turn) for turn in range(SETTLED + options.rounds + 1)]
                if not mixed:
                    asked = [torch.eye(len(tasks))[each.argmax(1)] for each in asked]
                calls = {"base": lambda turn, batch=batch: module(**batch)}
                for way, model in models.items():
                    calls[way] = lambda turn, batch=batch, asked=asked, model=model: model(
                        batch, weights=asked[turn]
                    )
                    for turn in range(SETTLED):
                        calls[way](options.rounds + 1 + turn)
                found = medians(calls, options.rounds)
                line = ["some two" if mixed else "one", str(count), f"{1e3 * found['base']:.1f} ms"]
                body.append([*line, *(f"{found[way] / found['base']:.2f}×" for way in models)])
                print(body[-1], flush=True)
    section = f"""## Switching: a small model

    python examples/digits/train.py --out build/digits
    python benchmarks/switching/small.py --models build/digits

The vision transformer of examples/digits ({size:.2f} M parameters, 17 tokens a picture), {len(tasks)} tasks
with heads of their own by t-switch, drop {DROP}, over one forward pass of the base; random pictures, other
weights in each of {options.rounds} rounds, of which the median counts, after {SETTLED} other batches. Each
picture has *one* task, or *some* have *two*: three in ten. {torch.get_num_threads()} threads.
Measured on {machine()}.

{table(["tasks of a picture", "batch", "base", *models], body)}"""
    write_section("switching-small", section)
    print(section)


if __name__ == "__main__":
    main()
