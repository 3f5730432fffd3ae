"""Measures compressed models on the eight text tasks. Results are cached in files."""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.extra_forms import packed_extra
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.storage import store
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.extras import Extras
from flexswitch.merging.compression.plan import Training, TrainingInputs
from flexswitch.merging.methods.settings import parse_settings
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.examples import Examples, read_examples, task_file
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.zoos.pack import Form, create_zoo

HERE = Path(__file__).resolve().parent
FLEXSWITCH = ("precision=bfloat16", "augmentations=5", "form=sparse")
# Method → the setting that its size follows from, and its others.
SEARCHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "t-switch": ("drop", ()),
    "compeft": ("density", ()),
    "dare": ("drop", ("bits=16",)),
    "ultradelta": ("drop", ()),
    "delta-come": ("entry_bits", ()),
    "svd": ("rank", ()),
}
# Methods whose size can hardly be chosen, and their settings.
FIXED: dict[str, tuple[tuple[str, ...], ...]] = {"bitdelta": ((),), "tvq": (("bits=2",), ("bits=3",))}
MOST = {"entry_bits": 8.0, "rank": 4.0}  # of the share that a setting stands for; of the others 0.95
COMPARED = 200  # test texts a task that answers are compared on
PROBE = "cola"  # the task on which the settings of other methods are searched


@dataclass(frozen=True)
class Setup:
    """The folders of a benchmark, its number of threads, and how its models are run."""

    data: Path
    models: Path
    cache: Path
    jobs: int
    adapter: str | None = "hf-encoder"

    @cached_property
    def base(self) -> Any:
        return open_checkpoint(str(self.models / "base"))

    @cached_property
    def tasks(self) -> list[str]:
        return sorted(path.name.partition(".")[0] for path in self.data.glob("*.train.*"))

    def vector(self, task: str) -> TaskVector:
        return open_finetuned(str(self.models / task), self.base)


def read_setup(text: str) -> Setup:
    """Returns the setup that the command line gives. text: the description of the command."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of <task>.<split>.jsonl.gz files")
    parser.add_argument("--models", type=Path, default=HERE.parent / "text8" / "cache")
    parser.add_argument("--cache", type=Path, default=HERE / "cache")
    parser.add_argument("--jobs", type=int, default=2)
    setup = Setup(**vars(parser.parse_args()))
    setup.cache.mkdir(exist_ok=True)
    return setup


def individual(setup: Setup) -> dict[str, Any]:
    """Returns the scores of the fine-tuned models themselves."""
    kept = setup.cache / "individual.json"
    if not kept.exists():
        accuracy = {task: score(setup, task, setup.vector(task)) for task in setup.tasks}
        sizes = {task: 4 * setup.vector(task).parameters for task in setup.tasks}
        kept.write_text(json.dumps({"accuracy": accuracy, "payload": sizes, "seconds": {}}))
    return load(kept)


def trained(setup: Setup, size: int, steps: int, seed: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Returns FlexSwitch's scores at a size in kB."""
    texts = (*FLEXSWITCH, f"steps={steps}", f"seed={seed}", *settings)
    return scored(setup, "flexswitch", texts, at_size(setup, size))


def data_free(setup: Setup, size: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the scores at a size in kB without exemplars."""
    return scored(setup, "flexswitch", ("objective=none", "form=sparse", *settings), at_size(setup, size))


def at_size(setup: Setup, size: int) -> dict[str, str]:
    """Returns the target size of each task: that of its tensors plus its head."""
    beside = {task: head_bytes(setup.vector(task)) for task in setup.tasks}
    return {task: f"target_size={1000 * size + beside[task]}" for task in setup.tasks}


def head_bytes(vector: TaskVector) -> int:
    """Returns the bytes of a task's own tensors as an artifact stores them."""
    return sum(len(packed_extra(vector.extra(name)).data) for name in vector.extras)


def searched(setup: Setup, method: str, size: int) -> dict[str, Any]:
    """Returns the scores of another method at the setting that compresses the probe to a size in kB."""
    name, others = SEARCHED[method]
    kept = setup.cache / f"setting-{method}-{size}.json"
    if not kept.exists():

        def measure(text: str) -> int:
            return payload_of(setup, PROBE, method, (text, *others))

        kept.write_text(json.dumps(setting_text(name, search(name, measure, 1000 * size)[0])))
    return scored(setup, method, (json.loads(kept.read_text()), *others), {})


def search(
    name: str, measure: Callable[[str], int], size: int, share: float = 0.05, near: float = 0.01
) -> tuple[float, int]:
    """Returns the share whose setting comes nearest to so many bytes, and its bytes, of four tries at most.

    measure: returns the bytes by the text of a setting. share: the first to be tried. near: when to stop.
    """
    steepness = 0.75  # log bytes over the log of the share that is kept
    tried: list[tuple[float, int]] = []
    for _ in range(4):
        tried.append((share, measure(setting_text(name, share))))
        missing = math.log(size / tried[-1][1])
        if abs(missing) < near:
            break
        if len(tried) > 1 and abs(step := math.log(share / tried[-2][0])) > 1e-3:
            steepness = min(max(math.log(tried[-1][1] / tried[-2][1]) / step, 0.3), 1.2)
        share = min(share * math.exp(missing / steepness), MOST.get(name, 0.95))
    return min(tried, key=lambda each: abs(math.log(size / each[1])))


def setting_text(name: str, share: float) -> str:
    """Returns the text of the setting that keeps a share, a millionth at least; a rank is one of 256."""
    share = max(share, 1e-6)
    if name == "rank":
        return f"rank={max(1, round(256 * share))}"
    return f"{name}={1 - share if name == 'drop' else share:.6f}"


def payload_of(setup: Setup, task: str, method: str, texts: Sequence[str]) -> int:
    """Returns the bytes of one task's tensors."""
    path = setup.cache / "probe.fsw"
    squeeze(setup, task, method, texts, path)
    artifact = open_artifact(path)
    names = list(artifact.header.tensors)
    with ThreadPoolExecutor(setup.jobs) as pool:
        forms = list(pool.map(lambda name: store(artifact.sparse(name), effort="small"), names))
    return sum(
        len(block.data) for form in forms for block in (*form.blocks, *([form.rows] if form.rows else []))
    )


def scored(setup: Setup, method: str, texts: Sequence[str], by_task: dict[str, str]) -> dict[str, Any]:
    """Returns accuracy, bytes of tensors and seconds of every task, from the cache if they are there."""
    key = key_of(method, texts, by_task)
    kept, zoo = setup.cache / f"{key}.json", setup.cache / f"{key}.zoo"
    if kept.exists():
        return {**load(kept), "key": key}
    result: dict[str, Any] = {
        "settings": list(texts),
        "accuracy": {},
        "payload": {},
        "seconds": {},
        "training": {},
    }
    files = []
    for task in setup.tasks:
        path = setup.cache / f"{task}.fsw"
        started = time.perf_counter()
        squeeze(setup, task, method, [*texts, *([by_task[task]] if by_task else [])], path)
        result["seconds"][task] = time.perf_counter() - started
        files.append(path)
    create_zoo(zoo, files, Form(effort="small", jobs=setup.jobs), None, True, lambda task: None)
    for task, artifact in open_zoo(zoo).items():
        result["accuracy"][task] = score(setup, task, ArtifactVector(artifact, setup.base))
        result["payload"][task] = artifact.path.stat().st_size - artifact.extra_bytes()
        result["file"] = {**result.get("file", {}), task: artifact.path.stat().st_size}
        record = artifact.header.training
        result["training"][task] = None if record is None else record.model_dump(exclude={"curve"})
    kept.write_text(json.dumps(result, indent=1))
    print(key, f"{mean(result['accuracy']):.2f} at {mean(result['payload']) / 1e3:.0f} kB", flush=True)
    return {**load(kept), "key": key}


def key_of(method: str, texts: Sequence[str], by_task: dict[str, str]) -> str:
    """Returns the name of the cached scores."""
    parts = [method, *texts, *sorted(set(by_task.values()))[:1]]
    return "-".join(parts).replace("=", "").replace(",", "")


def squeeze(
    setup: Setup, task: str, method: str, texts: Sequence[str], path: Path, extras: Extras = "exact"
) -> Artifact:
    """Compresses one task."""
    settings = parse_settings(texts)
    inputs = TrainingInputs(setup.base, setup.data, adapter=setup.adapter)

    def tell(note: str) -> None:
        if method == "flexswitch":
            print(task, note, flush=True)

    training = Training(inputs, on_note=tell, base=setup.base)
    vector, jobs = setup.vector(task), setup.jobs
    compress(vector, path, task, method, settings, True, jobs=jobs, training=training, extras_as=extras)
    return open_artifact(path)


def score(setup: Setup, task: str, vector: TaskVector) -> float:
    """Returns the accuracy in percent on the whole test file."""
    examples = read_examples(task_file(setup.data, task, "test"), labelled=True)
    assert examples.labels is not None
    return 100 * float((answers(setup, task, vector, examples).argmax(1) == np.array(examples.labels)).mean())


def likeness(setup: Setup, row: dict[str, Any]) -> dict[str, float]:
    """Returns how near a row's models are to the fine-tuned ones, on the first test texts of every task.

    divergence: KL in nats, mean over texts. agreement: texts that are answered alike, in percent.
    """
    kept = setup.cache / f"{row['key']}.likeness.json"
    if not kept.exists():
        divergences, agreements = {}, {}
        for task, artifact in open_zoo(setup.cache / f"{row['key']}.zoo").items():
            examples = read_examples(task_file(setup.data, task, "test"), labelled=True).take(
                np.arange(COMPARED)
            )
            right = answers(setup, task, setup.vector(task), examples)
            found = answers(setup, task, ArtifactVector(artifact, setup.base), examples)
            divergences[task] = float((np.exp(right) * (right - found)).sum(1).mean())
            agreements[task] = 100 * float((right.argmax(1) == found.argmax(1)).mean())
        kept.write_text(json.dumps({"divergence": mean(divergences), "agreement": mean(agreements)}))
    return load(kept)


def answers(setup: Setup, task: str, vector: TaskVector, examples: Examples) -> NDArray[np.float64]:
    """Returns log probabilities, (example, class)."""
    found = outputs(setup, task, vector, examples)
    return found - np.logaddexp.reduce(found, 1, keepdims=True)


def outputs(
    setup: Setup, task: str, vector: TaskVector, examples: Examples, factor: float = 1.0
) -> NDArray[np.float64]:
    """Returns what base + factor · vector says, (example, column); each thread runs its own batches."""
    adapter = get_adapter(setup.base, None, setup.adapter)
    model = adapter.model(vector.model.config, vector.extras)
    tensors = restored_tensors(setup.base, vector, factor, torch.float32)
    load_weights(
        model, {adapter.parameter_name(name): tensor.whole() for name, tensor in tensors.items()}, task
    )
    rows = examples.by_length(np.arange(len(examples)))
    batches = [
        adapter.batch(examples.take(chunk).inputs) for chunk in np.split(rows, range(64, len(rows), 64))
    ]

    def run(batch: Any) -> NDArray[np.float64]:
        with torch.inference_mode():
            found: NDArray[np.float64] = adapter.logits(model, batch).double().numpy()
            return found

    with ThreadPoolExecutor(setup.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = np.concatenate(list(pool.map(run, batches)))
    return found[np.argsort(rows)]


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def mean(values: dict[str, float]) -> float:
    return statistics.mean(values.values())
