"""Runs examples/language as a user would, and writes its figures into docs/benchmarks.md.

    python benchmarks/language/run.py [--work DIR]

DIR gets the models and the zoo [default: build/language]; what it holds already is not made again, so give an
empty one to measure the time of it all.
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

from report import machine, table, write_section  # noqa: E402  # a sibling, found by the line above

TASKS = ("describe", "explain", "write")
ROWS = {
    "base": "base",
    "individual": "individual",
    "flexswitch": "flexswitch, 0.5 %",
    "auto-flexswitch (per-sample)": "flexswitch, routed by prompt",
}


def timed(*command: str) -> tuple[float, str]:
    """Returns the seconds that a command takes, and what it prints."""
    started = time.monotonic()
    found = subprocess.run([*command], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    return time.monotonic() - started, found.stdout


def evaluated(zoo: Path, data: Path, *options: str) -> dict[str, Any]:
    """Returns what `flexswitch eval` finds."""
    _, text = timed("flexswitch", "eval", str(zoo), "--data", str(data), "--json", "-q", *options)
    found: dict[str, Any] = json.loads(text)
    return found


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
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "language")
    work: Path = parser.parse_args().work.resolve()
    load = os.getloadavg()[0]
    training, said = timed(sys.executable, "examples/language/train.py", "--out", str(work))
    print(said)
    recipe = (ROOT / "recipes" / "language.yaml").read_text().replace("build/language", str(work))
    path = work / "language.yaml"
    path.write_text(recipe)
    running, said = timed("flexswitch", "run", str(path), "--jobs", "2")
    print(said)
    base, data, zoo = work / "base", work / "data", work / "zoo"
    tuned = [part for task in TASKS for part in ("--finetuned", f"{task}={work / task}")]
    methods = "base,individual,flexswitch,auto-flexswitch"
    found = evaluated(zoo, data, "--base", str(base), *tuned, "--methods", methods)
    exact = evaluated(
        zoo, data, "--base", str(base), *tuned, "--methods", "base,individual,flexswitch", "--limit", "100",
        "--metric", "describe=exact-match",
    )  # fmt: skip
    right = {method: row["scores"]["describe"] for method, row in exact["methods"].items()}
    count = parameters(base)
    header = [
        "perplexity of answers",
        *TASKS,
        "average",
        "worst over its fine-tune",
        "kB a task",
        "of float32",
        "routing",
    ]
    changes = ", ".join(f"{task} {change(base, work / task):.1%}" for task in TASKS)
    write_section("language", f"""## Language models, {count / 1e6:.1f} M parameters

    python benchmarks/language/run.py

examples/language: a Llama of four layers of the standard library's text, and three fine-tunes with 200 test
examples each: *describe* the arguments of a function as JSON (prompt and completion), *explain* what it does
(chats), *write* its body (prompt and completion). Only answers count, and routing sees only prompts; the
average is the geometric mean. Fine-tuning changed the weights by these shares of their norm: {changes}.
Descriptions that are right to the letter, of 100: base {right["base"]:.0f}, individual
{right["individual"]:.0f}, flexswitch {right["flexswitch"]:.0f}.
Training took {training:.0f} s and the recipe {running:.0f} s, from a load of {load:.1f}.
Measured on {machine()}.

{table(header, rows(found, count))}
""")  # fmt: skip


if __name__ == "__main__":
    main()
