"""Scores static merges, shared vectors, T-Switch, FlexSwitch and routed zoos by the bytes that a task takes.

    python benchmarks/text8/equal_bytes.py --data DIR --write text8
    python benchmarks/text8/equal_bytes.py --data build/digits/data --cache build/digits --write digits

Takes the models of benchmarks/text8/run.py and its DIR, or those of examples/digits/train.py. `--write NAME`
puts the table and its chart into the docs. Finished steps are kept in `--cache` and not repeated.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import DOCUMENT, draw_by_size, machine, table, write_section
from run import flexswitch

from flexswitch.codecs.format.zoo import Zoo, open_zoo
from flexswitch.merging.evaluation.fixed_weights import score_fixed
from flexswitch.merging.evaluation.methods import Evaluation, score, weights_of
from flexswitch.merging.evaluation.setup import Request, open_evaluation
from flexswitch.merging.task_vectors.shared_vector import artifact_vector

STATIC = (
    "average,task-arithmetic,ties,dare-linear,dare-ties,della,della-linear,breadcrumbs,breadcrumbs-ties,"
    "consensus-ta,consensus-ties,iso-c,tsv-m,pcb,multislerp,karcher,model-stock,sce,ram,ram-plus"
)
MASK_LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
VALIDATION = 150  # last training texts of a task, by which its mask of TALL is chosen
T_SWITCH = 0.9  # the drop rate of the zoo that is routed
COMMANDS = {
    "text8": "--data DIR --write text8",
    "digits": "--data build/digits/data --cache build/digits --write digits",
}

Found = dict[str, Any]


class Row(NamedTuple):
    """One line of the table: its kind and name, its accuracies, bytes a task, and time over the base's.

    time: None for one model with fixed weights, which takes the base's.
    """

    kind: str
    name: str
    accuracy: dict[str, float]
    stored: float
    time: float | None = None

    @property
    def average(self) -> float:
        """The mean accuracy of the tasks in %."""
        return sum(self.accuracy.values()) / len(self.accuracy)


class Bench:
    """Packs and scores zoos of some tasks, each step once. limit: of test texts of a task, None for all."""

    def __init__(self, cache: Path, data: Path, tasks: Sequence[str], limit: int | None) -> None:
        self.cache, self.data, self.tasks, self.limit = cache, data, tasks, limit
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

    def t_switch(self, drop: float) -> Path:
        """Returns a zoo of T-Switch."""
        return self.alone(f"t-switch-{drop}", "--method", "t-switch", "--set", f"drop={drop}")

    @cached_property
    def evaluation(self) -> Evaluation:
        """The test texts, the models that run them, and the fine-tuned weights."""
        request = Request(
            self.t_switch(T_SWITCH), self.base, self.data, self.models, methods=(), limit=self.limit
        )
        return open_evaluation(request)

    @cached_property
    def validation(self) -> Evaluation:
        """The same with the last training texts."""
        folder = self.work / "validation"
        folder.mkdir(exist_ok=True)
        for task in self.tasks:
            write_last(self.data, task, folder)
        return open_evaluation(Request(self.t_switch(T_SWITCH), self.base, folder, methods=()))

    def kept(self, key: str, find: Callable[[], Found]) -> Found:
        """Returns what is found, from a file if it was found before."""
        file = self.work / f"result-{key}-{self.limit}.json"
        if not file.exists():
            print(f"scoring {key}", flush=True)
            file.write_text(json.dumps(find()))
        found: Found = json.loads(file.read_text())
        return found

    def fixed(self, method: str) -> Row:
        """Returns the row of a static merge, the base or the fine-tuned models."""

        def find() -> Found:
            (found,) = score(self.evaluation, method, ())
            return {"accuracy": found.values, "stored": found.bytes_per_task}

        return Row("static", method, **self.kept(method, find))

    def stored(self, kind: str, name: str, zoo: Path) -> Row:
        """Returns the row of a zoo whose tasks are given."""
        found = self.kept(zoo.name, lambda: {"accuracy": accuracy(self.evaluation, open_zoo(zoo))})
        return Row(kind, name, found["accuracy"], open_zoo(zoo).stored_bytes() / len(self.tasks))

    def routed(self, kind: str, name: str, zoo: Path) -> Row:
        """Returns the row of a zoo whose tasks are chosen by its index."""
        if not (zoo / "index").exists():
            flexswitch("index", str(zoo), "--base", self.base, "--exemplars", str(self.data))
        limit = [] if self.limit is None else ["--limit", str(self.limit)]

        def find() -> Found:
            given = ("--base", self.base, "--data", str(self.data), "--methods", "auto-flexswitch", *limit)
            (found,) = flexswitch("eval", str(zoo), *given)["methods"].values()
            time = found["time_over_base"]
            return {"accuracy": found["scores"], "stored": found["bytes_per_task"], "time": time}

        return Row(f"{kind}, routed", name, **self.kept(f"{zoo.name}-routed", find))

    def tall_lambdas(self) -> list[str]:
        """Returns each task's `mask_lambda` of most validation texts answered right, the first of equals."""

        def find() -> Found:
            zoos = {factor: self.shared("tall", [f"mask_lambda={factor}"]) for factor in MASK_LAMBDAS}
            return {str(factor): accuracy(self.validation, open_zoo(zoo)) for factor, zoo in zoos.items()}

        found = self.kept("tall-validation", find)
        best = {task: max(found, key=lambda factor: found[factor][task]) for task in self.tasks}
        return [f"{task}:mask_lambda={factor}" for task, factor in best.items()]


def write_last(data: Path, task: str, folder: Path) -> None:
    """Writes a task's last training examples as its test examples."""
    texts, pictures = data / f"{task}.train.jsonl.gz", data / f"{task}.train.npz"
    if texts.exists():
        lines = gzip.decompress(texts.read_bytes()).splitlines(True)
        (folder / f"{task}.test.jsonl").write_bytes(b"".join(lines[-VALIDATION:]))
    else:
        with np.load(pictures) as arrays:
            last = {name: arrays[name][-VALIDATION:] for name in arrays.files}
        np.savez(folder / f"{task}.test.npz", **last)


def accuracy(evaluation: Evaluation, zoo: Zoo) -> dict[str, float]:
    """Returns the accuracy of each task as a zoo stores it."""
    models = evaluation.task_models
    vectors = {task: artifact_vector(zoo[task], models.base) for task in zoo}
    return score_fixed(models, "stored", weights_of(models, vectors, 1.0), 0.0).values


def rows(bench: Bench, static: Sequence[str], sizes: Sequence[str]) -> Iterator[Row]:
    """Yields the lines of the table. sizes: of FlexSwitch, of a task's tensors in float32."""
    for method in ("base", "individual", *static):
        yield bench.fixed(method)
    for drop in (0.6, T_SWITCH, 0.97):
        yield bench.stored("alone", f"t-switch, drop={drop}", bench.t_switch(drop))
    yield bench.routed("alone", f"t-switch, drop={T_SWITCH}", bench.t_switch(T_SWITCH))
    lambdas = bench.tall_lambdas()
    half = ("drop=0.9", "bits=16", "shared_bits=16")
    for method, settings, set_for in (
        ("emr", ("shared_bits=32",), ()), ("emr", ("shared_bits=16",), ()), ("emr", ("shared_bits=4",), ()),
        ("tall", ("shared_bits=32",), lambdas), ("tall", ("shared_bits=4",), lambdas),
        ("rtvq", ("shared_bits=3", "bits=2"), ()), ("rtvq", ("shared_bits=2", "bits=1"), ()),
        ("twin", ("drop=0.9", "bits=32", "shared_bits=32"), ()), ("twin", half, ()),
        ("twin", ("drop=0.97", "bits=16", "shared_bits=4"), ()),
    ):  # fmt: skip
        zoo = bench.shared(method, settings, set_for)
        yield bench.stored("shared", f"{method}, {', '.join(settings)}", zoo)
    yield bench.routed("shared", "emr, shared_bits=16", bench.shared("emr", ("shared_bits=16",)))
    yield bench.routed("shared", f"twin, {', '.join(half)}", bench.shared("twin", half))
    for size in sizes:
        trained = ("--method", "flexswitch", "--exemplars", str(bench.data), "--target-size", size)
        zoo = bench.alone(f"flexswitch-{size}", *trained)
        yield bench.stored("alone", f"flexswitch, {size}", zoo)
        yield bench.routed("alone", f"flexswitch, {size}", zoo)


def report(found: Sequence[Row], bench: Bench, name: str) -> str:
    """Returns the section for docs/benchmarks.md."""
    individual = next(row for row in found if row.name == "individual")
    body = [
        [
            row.kind,
            row.name,
            f"{row.average:.2f}",
            f"{100 * row.average / individual.average:.2f}",
            f"{row.stored / 1e3:,.0f}",
            f"{100 * row.stored / individual.stored:.2f}",
            "–" if row.time is None else f"{row.time:.2f}×",
        ]
        for row in found
    ]
    header = ["stored", "method", "average", "of individual, %", "kB a task", "of float32, %", "time"]
    texts = "whole test files" if bench.limit is None else f"the first {bench.limit} test examples of each"
    command = COMMANDS.get(name, "--data DIR --cache DIR")
    command += "" if bench.limit is None else f" --limit {bench.limit}"
    command += "" if any(row.name.startswith("flexswitch") for row in found) else ' --sizes ""'
    return f"""## By the bytes of a task, {name}: static, shared, alone, routed

    python benchmarks/text8/equal_bytes.py {command}

The models of {", ".join(bench.tasks)};
accuracy in %, {texts}. Bytes are whole files, heads included, and a task's share of the
vector that all share and of the index. The more tasks share a vector, the less of it each of them pays; a
static merge takes the place of the base and stores heads alone. TALL's `mask_lambda` is the best of each
task on its last {VALIDATION} training examples. Routed rows score one mixed stream; time is that of a sample
over one forward pass of the base, and without a figure where one model has fixed weights.
Measured on {machine()}.

{table(header, body)}

![accuracy against bytes a task, {name}]({chart(name).name})"""


def chart(name: str) -> Path:
    """Returns where the chart of a suite is."""
    return DOCUMENT.with_name(f"equal-bytes-{name}.svg")


def draw(found: Sequence[Row], path: Path) -> None:
    """Writes an SVG of the table: average accuracy against bytes a task, a colour for each kind."""
    individual = next(row.average for row in found if row.name == "individual")
    kinds = dict.fromkeys(row.kind for row in found)

    def plot(axes: Any) -> None:
        for kind, marker in zip(kinds, "osD^v", strict=False):
            rows = [row for row in found if row.kind == kind and row.name not in ("base", "individual")]
            sizes, averages = [row.stored for row in rows], [row.average for row in rows]
            axes.plot(sizes, averages, marker, markersize=6, label=kind)

    draw_by_size(path, individual, plot, "bytes a task", "average accuracy (%)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="where the models are")
    parser.add_argument("--tasks", help="names of tasks, with commas [default: all of the data]")
    parser.add_argument("--static", default=STATIC, help="static merges [default: %(default)s]")
    parser.add_argument("--sizes", default="0.2%,1%", help="of FlexSwitch [default: 0.2%%,1%%]")
    parser.add_argument("--limit", type=int, help="test examples of a task [default: all]")
    parser.add_argument("--write", metavar="NAME", help="write the section and the chart of this suite")
    options = parser.parse_args()
    every = sorted({path.name.partition(".")[0] for path in options.data.glob("*.train.*")})
    tasks = options.tasks.split(",") if options.tasks else every
    bench = Bench(options.cache, options.data, tasks, options.limit)
    static, sizes = (list(filter(None, each.split(","))) for each in (options.static, options.sizes))
    found = list(rows(bench, static, sizes))
    section = report(found, bench, options.write or "a part")
    print(section)
    if options.write:
        write_section(f"equal-bytes-{options.write}", section)
        draw(found, chart(options.write))


if __name__ == "__main__":
    main()
