"""Compares `flexswitch merge --config` with mergekit on synthetic models: time, processor time, peak memory.

    python benchmarks/merging/run.py

Four fine-tuned models and their base, of random bfloat16 weights in the shapes of a Llama, are made in the
cache, and so is mergekit's virtual environment, which takes torch from this one. Both programs merge by the
same configuration, in turn, and what they write is compared where nothing is drawn at random. The table goes
into docs/benchmarks.md.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from report import machine, table, write_section

HERE = Path(__file__).resolve().parent
MERGEKIT = "mergekit==0.1.5"
TASKS = "abcd"
HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 2816, 32000
METHODS = {
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 1.0, "density": 0.2},
    "dare_ties": {"weight": 0.5, "density": 0.5},
    "breadcrumbs": {"weight": 0.3, "density": 0.7, "gamma": 0.02},
    "model_stock": {},
    "sce": {"select_topk": 0.5},
}
RANDOM = ("dare_ties",)
DIFFERENCES = """Where a
method keeps the largest entries, many deltas of bfloat16 weights have just the size of the limit, and the two
programs keep others of them; what else differs does so by one step of bfloat16."""


class Cost(NamedTuple):
    """Seconds that passed, seconds of processor time, and bytes of peak memory."""

    wall: float
    processor: float
    memory: int


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a Llama."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
        found |= {f"{prefix}mlp.{part}_proj.weight": (INTERMEDIATE, HIDDEN) for part in ("gate", "up")}
        found[f"{prefix}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found |= {f"{prefix}{part}_layernorm.weight": (HIDDEN,) for part in ("input", "post_attention")}
    return found


def make_models(cache: Path, layers: int) -> Path:
    """Returns the folder of the models, which it makes unless they are there."""
    folder = cache / f"models-{layers}"
    if (folder / "complete").exists():
        return folder
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes(layers).items()}
    base = {name: weights.to(torch.bfloat16) for name, weights in base.items()}
    for model in ("base", *TASKS):
        (folder / model).mkdir(parents=True, exist_ok=True)
        state = {
            name: weights if model == "base" else _moved(weights, generator) for name, weights in base.items()
        }
        save_file(state, folder / model / "model.safetensors", {"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(config))
    (folder / "complete").touch()
    return folder


def _moved(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (weights.float() + 0.001 * torch.randn(weights.shape, generator=generator)).to(torch.bfloat16)


def mergekit(cache: Path) -> Path:
    """Returns mergekit's program, installed into an environment of its own on top of this one's packages."""
    folder = cache / "mergekit"
    program = folder / "bin" / "mergekit-yaml"
    if not program.exists():
        venv.create(folder, with_pip=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        ours = [place for place in sys.path if place.endswith("site-packages")]
        (packages / "ours.pth").write_text("\n".join(ours) + "\n")
        subprocess.run([folder / "bin" / "pip", "install", "-q", MERGEKIT], check=True)
    return program


def configuration(folder: Path, method: str) -> Path:
    """Returns the file of a method's configuration."""
    settings = METHODS[method]
    shared = {name: value for name, value in settings.items() if name == "select_topk"}
    own = {name: value for name, value in settings.items() if name != "select_topk"}
    models = [{"model": str(folder / task), **({"parameters": own} if own else {})} for task in TASKS]
    document = {
        "merge_method": method, "base_model": str(folder / "base"), "models": models,
        "dtype": "float32", "out_dtype": "bfloat16", **({"parameters": shared} if shared else {}),
    }  # fmt: skip
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


# A process of its own starts the command: a child's peak memory includes that of the one it was forked from.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
print(json.dumps([status, wall, processor, usage.ru_maxrss * 1024]))
"""


def measured(command: list[str]) -> Cost:
    """Returns what a command costs, its output thrown away. Raises: CalledProcessError."""
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command], check=True, capture_output=True, text=True
    )
    status, wall, processor, memory = json.loads(launched.stdout)
    if status:
        raise subprocess.CalledProcessError(status, command, stderr=launched.stderr)
    return Cost(wall, processor, memory)


def largest_difference(one: Path, other: Path) -> float:
    """Returns the largest difference of two models, tensor by tensor."""
    largest = 0.0
    files = [sorted(folder.glob("*.safetensors")) for folder in (one, other)]
    theirs = {name: path for path in files[1] for name in safe_open(path, "pt").keys()}  # noqa: SIM118  # no mapping
    for path in files[0]:
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                with safe_open(theirs[name], "pt") as found:
                    change = opened.get_tensor(name).float() - found.get_tensor(name).float()
                largest = max(largest, float(change.abs().max()))
    return largest


def compare(method: str, folder: Path, program: Path) -> list[str]:
    """Returns a row of the table."""
    path = str(configuration(folder, method))
    ours, theirs = str(folder / "ours"), str(folder / "theirs")
    flexswitch = str(Path(sys.executable).parent / "flexswitch")
    costs = (
        measured([flexswitch, "merge", "--config", path, "-o", ours, "--overwrite", "-q"]),
        measured([str(program), path, theirs]),
    )
    differs = "random" if method in RANDOM else f"{largest_difference(Path(ours), Path(theirs)):.2g}"
    cells = [
        f"{one:.1f} / {other:.1f}"
        for one, other in zip(
            (costs[0].wall, costs[0].processor, costs[0].memory / 1e9),
            (costs[1].wall, costs[1].processor, costs[1].memory / 1e9),
            strict=True,
        )
    ]
    print(method, *cells, differs, flush=True)
    return [method, *cells, differs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--layers", type=int, default=38, help="38 make models of 1.1 GB")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    folder, program = make_models(options.cache, options.layers), mergekit(options.cache)
    size = (folder / "base" / "model.safetensors").stat().st_size / 1e9
    before = os.getloadavg()[0]
    rows = [compare(method, folder, program) for method in options.methods]
    header = ["method", "seconds", "processor seconds", "peak GB", "largest difference"]
    peer = MERGEKIT.replace("==", " ")
    write_section(
        "merging",
        f"## Static merges\n\n`python benchmarks/merging/run.py --layers {options.layers}`: four models of "
        f"{size:.2f} GB in bfloat16, merged in float32. Each figure is flexswitch / {peer}. {DIFFERENCES}\n\n"
        f"{table(header, rows)}\n\n"
        f"{machine()}; load average {before:.1f} before and {os.getloadavg()[0]:.1f} after.",
    )


if __name__ == "__main__":
    main()
