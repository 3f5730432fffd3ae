"""Measures memory and time of a training whose model does not fit in `--memory`, beside one that does.

    python benchmarks/flex_switch/memory.py --work DIR [--layers 2 22]

Makes Llamas with random weights in bfloat16 (2,048 wide, 32,000 words) and a fine-tune of each under --work,
and trains a few steps on texts of 32 words. Writes the table of docs/benchmarks.md.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from flexswitch.codecs.threads import DEFAULT_MEMORY
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Progress, Training, TrainingInputs
from flexswitch.merging.task_vectors.open_vector import open_finetuned

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

TEXTS, WORDS, BATCH = 16, 32, 8
HELD_BYTES = 25  # of a parameter, at the peak of a training that holds all
TASK = "task"


def config_of(layers: int) -> LlamaConfig:
    """Returns the config of a model with so many layers of 44 million weights each."""
    return LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32_000, num_hidden_layers=layers, tie_word_embeddings=False, max_position_embeddings=2048,
        dtype=torch.bfloat16,
    )  # fmt: skip


def weights_of(layers: int) -> int:
    """Returns the number of weights, about."""
    return 2 * 32_000 * 2048 + layers * 44_000_000


def available() -> int:
    """Returns the bytes of memory that a process may take."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def write_pair(folder: Path, layers: int) -> None:
    """Writes a base, its fine-tune and the exemplars."""
    config = config_of(layers)
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    for name in ("base", TASK):
        (folder / name).mkdir(parents=True)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder / name)
        words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(1000)}, unk_token="w0"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1").save_pretrained(folder / name)
    base, finetuned = {}, {}
    for number, (name, shape) in enumerate(shapes.items()):
        draw = torch.Generator().manual_seed(number)
        weights = torch.randn(shape, generator=draw) * 0.02 if len(shape) > 1 else torch.ones(shape)
        base[name] = weights.to(torch.bfloat16)
        finetuned[name] = weights.add_(torch.randn(shape, generator=draw), alpha=0.002).to(torch.bfloat16)
    save_file(base, folder / "base" / "model.safetensors", {"format": "pt"})
    save_file(finetuned, folder / TASK / "model.safetensors", {"format": "pt"})
    (folder / "data").mkdir()
    draw = torch.Generator().manual_seed(0)
    lines = [torch.randint(2, 1000, (WORDS,), generator=draw).tolist() for _ in range(TEXTS)]
    texts = [json.dumps({"text": " ".join(f"w{number}" for number in line)}) for line in lines]
    (folder / "data" / f"{TASK}.train.jsonl").write_text("\n".join(texts))


def train(folder: Path, memory: int, steps: int) -> None:
    """Trains, and prints the parameters, the seconds of a step after the first, and the artifact's digest."""
    base, ends = open_checkpoint(str(folder / "base")), []

    def on_step(progress: Progress) -> None:
        ends.append(time.monotonic())

    vector = open_finetuned(str(folder / TASK), base)
    inputs = TrainingInputs(base, folder / "data", per_task=TEXTS)
    settings = {
        "target_size": "0.3%", "steps": steps, "batch": BATCH, "min_exemplars": 1, "augmentations": 0,
        "scale_refit_steps": 0, "effort": "fast",
    }  # fmt: skip
    output = folder / "out.fsw"
    compress(
        vector,
        output,
        TASK,
        "flexswitch",
        settings,
        True,
        memory=memory,
        training=Training(inputs, None, on_step),
    )
    step = (ends[-1] - ends[0]) / (len(ends) - 1)
    print(json.dumps([vector.parameters, step, digest(output)]))


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(folder: Path, memory: int, steps: int) -> tuple[int, float, float, float, str]:
    """Returns parameters, seconds of a step and of all, the peak of memory in bytes, and the file's digest.

    Memory counts without the checkpoints' mapped pages, which the system may take back. What is measured is
    kept in the folder.
    """
    kept = folder / f"measured-{memory}-{steps}.json"
    if kept.exists():
        parameters, step, seconds, peak, found = json.loads(kept.read_text())
        return parameters, step, seconds, peak, found
    command = [
        sys.executable,
        __file__,
        "--train",
        str(folder),
        "--memory",
        str(memory),
        "--steps",
        str(steps),
    ]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            status = Path(f"/proc/{child.pid}/status").read_text()
            lines = dict(line.split(":", 1) for line in status.splitlines())
            peak = max(peak, 1024 * int(lines.get("RssAnon", "0 kB").split()[0]))
            time.sleep(0.02)
        assert child.stdout is not None
        parameters, step, found = json.loads(child.stdout.read().splitlines()[-1])
    result = parameters, step, time.monotonic() - started, peak, found
    kept.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder of the checkpoints")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 22])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.memory, options.steps)
        return
    rows = []
    for layers in options.layers:
        folder = options.work / f"llama-{layers}"
        if not (folder / "data").exists():
            write_pair(folder, layers)
        kinds = {"streamed": DEFAULT_MEMORY}
        if HELD_BYTES * weights_of(layers) < available():
            kinds = {"held": 1 << 40, **kinds}
        found = {name: measure(folder, memory, options.steps) for name, memory in kinds.items()}
        assert len({digest for *_, digest in found.values()}) == 1, "the artifacts differ"
        for name, (parameters, step, whole, peak, _) in found.items():
            rows.append(
                [
                    f"{parameters / 1e6:,.0f} M, {name}",
                    f"{peak / 1e9:.1f} GB",
                    f"{peak / parameters:.1f}",
                    f"{step:.1f} s",
                    f"{whole:.0f} s",
                ]
            )
    section = f"""## Training a model that does not fit in `--memory`

    python benchmarks/flex_switch/memory.py --work DIR

FlexSwitch on Llamas with random weights in bfloat16, {BATCH} texts of {WORDS} tokens a step, {options.steps}
steps, on two threads. *Held*: all of `--memory` that it asks for; *streamed*: the default of 1 GB. The
artifacts are equal; what this machine cannot hold is left out. *Peak* is without the mapped pages of the
checkpoints. Measured on {machine()}.

{table(["", "peak", "bytes a parameter", "a step", "in all"], rows)}"""
    write_section("flexswitch-memory", section)
    print(section)


if __name__ == "__main__":
    main()
