"""Runs examples/language as a user would, and writes its figures into docs/benchmarks.md.

    python benchmarks/language/run.py [--work DIR]

DIR gets the models and the zoo [default: build/language]. What it holds already is not made again; then no
times are written: give an empty one to measure them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

TASKS = ("describe", "explain", "write")
PERPLEXITY = "the perplexity of every task's answers"  # names of steps of the recipe
LEAST_SECONDS = 60
EXACT = "the descriptions that are right to the letter"
ROWS = {
    "base": "base",
    "individual": "individual",
    "flexswitch": "flexswitch, 0.5 %",
    "auto-flexswitch (per-sample)": "flexswitch, routed by prompt",
}


def timed(*command: str) -> float:
    """Returns the seconds that a command takes."""
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    return time.monotonic() - started


def parameters(model: Path) -> int:
    """Returns the number of a model's parameters."""
    return sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values())


def change(base: Path, tuned: Path) -> float:
    """Returns the norm of what fine-tuning changed over the norm of the base's weights."""
    one, other = (load_file(model / "model.safetensors") for model in (base, tuned))
    moved = sum(float((other[name] - one[name]).double().square().sum()) for name in one)
    return float((moved / sum(float(tensor.double().square().sum()) for tensor in one.values())) ** 0.5)


def rows(found: dict[str, Any], count: int) -> list[list[str]]:
    """Returns the lines of the table of perplexities."""
    lines = []
    for method, label in ROWS.items():
        row = found["methods"][method]
        share = row["least_share_of_individual"]
        lines.append([
            label,
            *(f"{row['scores'][task]:.2f}" for task in TASKS),
            f"{row['average']:.2f}",
            f"{1 / share - 1:+.1%}",
            f"{row['bytes_per_task'] / 1000:,.0f}",
            f"{row['bytes_per_task'] / (4 * count):.2%}",
            "–" if row["routing_accuracy"] is None else f"{row['routing_accuracy']:.1f}",
        ])  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("build/language"), help="relative to the repository"
    )
    work: Path = parser.parse_args().work
    load = os.getloadavg()[0]
    training = timed(sys.executable, "examples/language/train.py", "--out", str(work))
    recipe = (ROOT / "recipes" / "language.yaml").read_text()
    (ROOT / work / "language.yaml").write_text(recipe.replace("build/language", work.as_posix()))
    running = timed("flexswitch", "run", str(work / "language.yaml"), "--jobs", "2")
    steps = json.loads((ROOT / work / "language.lock").read_text())["steps"]
    found, exact = steps[PERPLEXITY]["result"], steps[EXACT]["result"]
    right = {method: row["scores"]["describe"] for method, row in exact["methods"].items()}
    base = ROOT / work / "base"
    count = parameters(base)
    took = f"Training took {training:.0f} s and the recipe {running:.0f} s, at a load of {load:.1f} before.\n"
    took = took if training > LEAST_SECONDS else ""  # it was made before
    header = [
        "perplexity of answers",
        *TASKS,
        "average",
        "worst over its fine-tune",
        "kB a task",
        "of float32",
        "routing",
    ]
    changes = ", ".join(f"{task} {change(base, ROOT / work / task):.1%}" for task in TASKS)
    write_section("language", f"""## Language models, {count / 1e6:.1f} M parameters

    python benchmarks/language/run.py

examples/language: a Llama of four layers of the standard library's text, and three fine-tunes of its upper
two layers, with 200 test examples each: *describe* the arguments of a function as JSON (prompt and
completion), *explain* what it does (chats), *write* its body (prompt and completion). Only answers count, and
routing sees only prompts; the average is the geometric mean. Fine-tuning changed the weights by these shares
of their norm: {changes}.
Descriptions that are right to the letter, of 100: base {right["base"]:.0f}, individual
{right["individual"]:.0f}, flexswitch {right["flexswitch"]:.0f}.
{took}Measured on {machine()}.

{table(header, rows(found, count))}
""")  # fmt: skip


if __name__ == "__main__":
    main()
