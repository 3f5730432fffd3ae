"""Fuzzes all that reads files: python benchmarks/fuzz/run.py --minutes 10 [--seed N] [--work DIR].

Needs atheris: pip install -e ".[fuzz,eval]". Each target gets so many minutes, one after another. An input
that ends in anything but a read file or a FlexswitchError, or takes 5 s of processor time or 2 GB of memory,
is a finding; the first one of each kind is saved in DIR/findings. Writes the section of docs/benchmarks.md.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import containers
import decoders
from model_readers import MODEL_READERS
from outcomes import LIMIT_BYTES, LIMIT_SECONDS, Tally, memory_limit
from reader import Reader
from report import machine, table, write_section
from text_readers import TEXT_READERS

TARGETS = {
    "decoders": Reader(
        "bytes to a codec", lambda work: decoders.seeds(), lambda data, work: decoders.target(data),
        longest=4096, own_mutate=decoders.mutate,
    ),
    "containers": Reader(
        "an artifact", containers.seeds, lambda data, work: containers.target(data, work / "fuzzed.fsw"),
        longest=32768, own_mutate=containers.mutate,
    ),
    **TEXT_READERS,
    **MODEL_READERS,
}  # fmt: skip


def fuzz(name: str, seconds: int, seed: int, work: Path) -> None:
    """Fuzzes one target in this process, which ends with it; its counts go to DIR/<name>.json."""
    import atheris

    _instrument(atheris.instrument_func)
    work.mkdir(parents=True, exist_ok=True)
    tally, reader = Tally(name, work / "findings"), TARGETS[name]
    target, seeds = partial(reader.target, work=work), list(reader.seeds(work))
    corpus = work / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
        with suppress(Exception):  # compiles what it needs before memory and time are limited
            target(data)
    started = time.monotonic()

    def run(data: bytes) -> None:
        tally.run(target, data)
        taken = time.monotonic() - started
        if taken > seconds:
            document = tally.counts | {"seconds": taken, "kinds": tally.findings}
            (work / f"{name}.json").write_text(json.dumps(document, indent=1))
            os._exit(0)  # libFuzzer would end the process so too, but without a word to Python

    def changed(data: bytes, longest: int, seed: int) -> bytes:
        # atheris puts another `Mutate` in its place when it begins, so it is looked up each time.
        draw = random.Random(seed)
        origin = data if draw.random() < 0.7 else draw.choice(seeds)
        found = reader.mutate(origin, draw, lambda part: atheris.Mutate(part, len(part) + 64))
        return found if len(found) <= longest else atheris.Mutate(data, longest)

    command = [
        "fuzz", str(corpus), f"-seed={seed}", f"-max_len={reader.longest}", "-timeout=600", "-rss_limit_mb=0",
        "-reduce_inputs=0", "-mutate_depth=2", f"-artifact_prefix={work}/",
    ]  # fmt: skip
    atheris.Setup(command, run, custom_mutator=changed)
    with memory_limit():
        atheris.Fuzz()


def _instrument(instrument: Callable[[Any], object]) -> None:
    """Makes the fuzzer see which branches our readers take.

    The modules were imported as they are, since numba can't compile instrumented functions. What it compiled
    stays as it is, and so unseen.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("flexswitch."):
            for function in _functions(vars(module).values(), name):
                instrument(function)


def _functions(values: Iterable[Any], module: str) -> Iterable[types.FunctionType]:
    for value in values:
        if isinstance(value, type) and value.__module__ == module:
            yield from _functions(vars(value).values(), module)
        inner = (getattr(value, name, None) for name in ("__func__", "fget", "func"))  # methods, properties
        plain = next(filter(None, inner), value)
        if isinstance(plain, types.FunctionType) and plain.__module__ == module:
            yield plain


def section(minutes: float, seed: int, counts: dict[str, dict[str, Any]]) -> str:
    """Returns the section for docs/benchmarks.md."""
    columns = ("inputs", "decoded", "refused", "findings")
    rows = [
        [
            TARGETS[name].label,
            *(f"{found[column]:,}" for column in columns),
            f"{found['inputs'] / found['seconds']:,.0f}",
        ]
        for name, found in counts.items()
    ]
    return f"""## Fuzzing

    python benchmarks/fuzz/run.py --minutes {minutes:g} --seed {seed}

Inputs to the decoders and to all readers of files, made by atheris {version("atheris")} under coverage of
our Python code. What numba compiles can't be watched; it runs with its bounds checked. About half of the
decoders' inputs begin as a valid encoding, most artifacts have sizes and checksums that fit, and in JSON
documents values and keys are changed, moved, nested and removed. *Decoded* inputs were read, and their
tensors encode and decode to themselves again; *refused* ones gave nothing but a FlexswitchError. A *finding*
is any other error, a broken promise, or an input that takes {LIMIT_SECONDS} s of processor time or
{LIMIT_BYTES / 1e9:g} GB of memory; findings of one kind count once.
Measured on {machine()}.

{table(["target", *columns, "inputs a second"], rows)}"""


def _fuzz_apart(name: str, minutes: float, seed: int, work: Path) -> dict[str, Any]:
    """Fuzzes one target in a process of its own, and returns its counts."""
    command = [sys.executable, __file__, "--target", name, "--minutes", str(minutes), "--seed", str(seed)]
    # Compiled code would read or write behind an array's end without a word; so it is an IndexError.
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(work / "compiled")}
    with (work / f"{name}.log").open("wb") as log:
        run = subprocess.run(
            [*command, "--work", str(work)], stderr=log, env=os.environ | checked, check=False
        )
    if run.returncode:
        sys.exit(f"{name}: the process crashed; its last input and {name}.log are in {work}")
    counts: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    print(f"{name}: {json.dumps(counts)}", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer, above 0")
    parser.add_argument("--work", type=Path, help="where inputs, findings and logs are kept")
    parser.add_argument("--target", choices=list(TARGETS), help="fuzz this one alone, and write no section")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="fuzz-"))
    if options.target:
        fuzz(options.target, round(60 * options.minutes), options.seed, work)
        return 0
    work.mkdir(parents=True, exist_ok=True)
    counts = {name: _fuzz_apart(name, options.minutes, options.seed, work) for name in TARGETS}
    write_section("fuzz", section(options.minutes, options.seed, counts))
    print(section(options.minutes, options.seed, counts))
    print(f"findings and logs: {work}")
    return 1 if any(found["findings"] for found in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
