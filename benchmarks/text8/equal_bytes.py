"""Scores static merges, shared vectors, T-Switch, FlexSwitch and routed zoos by the bytes that a task takes.

    python benchmarks/text8/equal_bytes.py --data DIR [--cache DIR] [--tasks ag_news,cola]

Takes the models of benchmarks/text8/run.py, and its DIR. Of all eight tasks it writes docs/benchmarks.md, of
fewer it only prints the table. Finished steps are kept in `--cache` and not repeated.
"""

import argparse
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from report import machine, table, write_section
from run import HERE, flexswitch, score

STATIC = ("average", "task-arithmetic", "ties", "iso-c", "tsv-m")
FLOAT, HALF = ("shared_bits=32",), ("shared_bits=16",)
MASK_LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
VALIDATION = 400  # last training texts of a task, by which its mask of TALL is chosen
EIGHT = 8


class Row(NamedTuple):
    """One line of the table: its kind, what it is, and what `eval` says of it."""

    kind: str
    name: str
    found: dict[str, Any]


class Bench:
    """Packs and scores zoos of some tasks, each step once."""

    def __init__(self, cache: Path, data: Path, tasks: Sequence[str]) -> None:
        self.cache, self.data, self.tasks = cache, data, tasks
        self.work = cache / f"equal-bytes-{'-'.join(tasks)}"
        self.work.mkdir(exist_ok=True)
        self.base, self.models = str(cache / "base"), [f"{task}={cache / task}" for task in tasks]

    def shared(self, method: str, settings: Sequence[str] = (), set_for: Sequence[str] = ()) -> Path:
        """Returns a zoo of tasks that share a vector."""
        zoo = self.work / "-".join([method, *settings, *set_for]).replace(":", "-")
        words = [word for each in settings for word in ("--set", each)]
        words += [word for each in set_for for word in ("--set-for", each)]
        if not zoo.exists():
            flexswitch("pack", *self.models, "--share", method, "--base", self.base, "-o", str(zoo), *words)
        return zoo

    def alone(self, name: str, *options: str) -> Path:
        """Returns a zoo of tasks that are compressed one by one."""
        zoo = self.work / name
        for task in self.tasks:
            artifact = self.work / f"{task}-{name}.fsw"
            if not artifact.exists():
                given = ("--base", self.base, "-o", str(artifact), "--name", task, *options)
                flexswitch("compress", str(self.cache / task), *given)
        if not zoo.exists():
            files = [str(self.work / f"{task}-{name}.fsw") for task in self.tasks]
            flexswitch("pack", *files, "-o", str(zoo), "--effort", "small")
        return zoo

    def score(self, zoo: Path, methods: str, *options: str, data: Path | None = None) -> dict[str, Any]:
        """Returns what `eval` says of each method."""
        key = f"{zoo.name}-{methods}" + ("-validation" if data else "")
        found = score(
            self.cache, data or self.data, zoo, key, "--methods", methods, *options, kept_in=self.work
        )
        methods_found: dict[str, Any] = found["methods"]
        return methods_found

    def routed(self, zoo: Path) -> dict[str, Any]:
        """Returns the scores of a zoo whose tasks are chosen by its index."""
        if not (zoo / "index").exists():
            flexswitch("index", str(zoo), "--base", self.base, "--exemplars", str(self.data))
        (found,) = self.score(zoo, "auto-flexswitch").values()
        chosen: dict[str, Any] = found
        return chosen

    def tall_lambdas(self) -> list[str]:
        """Returns each task's `mask_lambda` of most validation texts answered right, the first of equals."""
        data = self.validation()
        found = {
            factor: self.score(self.shared("tall", [f"mask_lambda={factor}"]), "tall", data=data)["tall"]
            for factor in MASK_LAMBDAS
        }
        best = {
            task: max(MASK_LAMBDAS, key=lambda factor: found[factor]["accuracy"][task]) for task in self.tasks
        }
        return [f"{task}:mask_lambda={factor}" for task, factor in best.items()]

    def validation(self) -> Path:
        """Returns a folder whose test files are the last training texts."""
        folder = self.work / "validation"
        folder.mkdir(exist_ok=True)
        for task in self.tasks:
            lines = gzip.decompress((self.data / f"{task}.train.jsonl.gz").read_bytes()).splitlines(True)
            (folder / f"{task}.test.jsonl").write_bytes(b"".join(lines[-VALIDATION:]))
        return folder


def rows(bench: Bench, sizes: Sequence[str]) -> Iterator[Row]:
    """Yields the lines of the table. sizes: of FlexSwitch, of a task's tensors in float32."""
    finetuned = [word for model in bench.models for word in ("--finetuned", model)]
    zoo = bench.alone("t-switch-0.9", "--method", "t-switch", "--set", "drop=0.9")
    fixed = bench.score(zoo, ",".join(("base", "individual", *STATIC)), *finetuned)
    for name in ("base", "individual", *STATIC):
        yield Row("static", name, fixed[name])
    lambdas = bench.tall_lambdas()
    for method, settings, set_for in (
        ("emr", FLOAT, ()), ("emr", HALF, ()), ("emr", ("shared_bits=4",), ()),
        ("tall", FLOAT, lambdas), ("tall", HALF, lambdas),
        ("rtvq", ("shared_bits=3", "bits=2"), ()), ("rtvq", ("shared_bits=2", "bits=1"), ()),
        ("twin", ("drop=0.9", "bits=32", *FLOAT), ()), ("twin", ("drop=0.9", "bits=16", *HALF), ()),
        ("twin", ("drop=0.97", "bits=16", "shared_bits=4"), ()),
    ):  # fmt: skip
        zoo = bench.shared(method, settings, set_for)
        yield Row("shared", f"{method}, {', '.join(settings)}", bench.score(zoo, method)[method])
    for method, settings in (("emr", HALF), ("twin", ("drop=0.9", "bits=16", *HALF))):
        zoo = bench.shared(method, settings)
        yield Row("shared, routed", f"{method}, {', '.join(settings)}", bench.routed(zoo))
    for drop in (0.6, 0.9, 0.97):
        zoo = bench.alone(f"t-switch-{drop}", "--method", "t-switch", "--set", f"drop={drop}")
        yield Row("alone", f"t-switch, drop={drop}", bench.score(zoo, "t-switch")["t-switch"])
    yield Row("alone, routed", "t-switch, drop=0.9", bench.routed(bench.work / "t-switch-0.9"))
    for size in sizes:
        trained = ("--method", "flexswitch", "--exemplars", str(bench.data), "--target-size", size)
        zoo = bench.alone(f"flexswitch-{size}", *trained)
        yield Row("alone", f"flexswitch, {size}", bench.score(zoo, "flexswitch")["flexswitch"])
        yield Row("alone, routed", f"flexswitch, {size}", bench.routed(zoo))


def report(found: Sequence[Row], tasks: Sequence[str]) -> str:
    """Returns the section for docs/benchmarks.md."""
    individual = next(row.found for row in found if row.name == "individual")
    body = [
        [
            row.kind,
            row.name,
            f"{row.found['average']:.2f}",
            f"{100 * row.found['average'] / individual['average']:.2f}",
            f"{row.found['bytes_per_task'] / 1e3:,.0f}",
            f"{100 * row.found['bytes_per_task'] / individual['bytes_per_task']:.2f}",
        ]
        for row in found
    ]
    header = ["stored", "method", "average", "of individual, %", "kB a task", "of float32, %"]
    return f"""## By the bytes of a task: static, shared, alone, routed

    python benchmarks/text8/equal_bytes.py --data DIR

The models of {", ".join(tasks)}, accuracy in %, whole test files. Bytes are whole files, heads
included, and a task's share of the vector that all share and of the index. The more tasks share a vector, the
less of it each of them pays. TALL's `mask_lambda` is the best of each task on its last {VALIDATION} training
texts. Routed rows score one mixed stream. Measured on {machine()}.

{table(header, body)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="where the models are")
    parser.add_argument("--tasks", help="names of tasks, with commas [default: all of the data]")
    parser.add_argument("--sizes", default="0.2%,1%", help="of FlexSwitch [default: 0.2%%,1%%]")
    options = parser.parse_args()
    suffix = ".train.jsonl.gz"
    every = sorted(path.name.removesuffix(suffix) for path in options.data.glob(f"*{suffix}"))
    tasks = options.tasks.split(",") if options.tasks else every
    bench = Bench(options.cache, options.data, tasks)
    section = report(list(rows(bench, [size for size in options.sizes.split(",") if size])), tasks)
    print(section)
    if len(tasks) == EIGHT:
        write_section("equal-bytes", section)


if __name__ == "__main__":
    main()
