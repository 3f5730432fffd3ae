"""Opens and checks the inputs of an evaluation before the first forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.codecs.format.zoo import Zoo, read_zoo
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.evaluation.fixed_weights import compare_with, score_fixed
from flexswitch.merging.evaluation.methods import Evaluation, check_methods, head_bytes, weights_of
from flexswitch.merging.evaluation.metrics import check_metric
from flexswitch.merging.evaluation.stream_weights import StreamRouter
from flexswitch.merging.evaluation.task_models import TaskModels
from flexswitch.merging.methods.registry import ROUTED
from flexswitch.merging.models.adapters import Adapter, get_adapter
from flexswitch.merging.models.device import check_device
from flexswitch.merging.models.examples import first, read_examples, task_file
from flexswitch.merging.models.head_files import Heads, read_head_files
from flexswitch.merging.models.runner import Runner
from flexswitch.merging.models.text_pairs import apart
from flexswitch.merging.routing.router import open_router
from flexswitch.merging.routing.voting_options import VotingOptions
from flexswitch.merging.switching.loaded_zoo import Engine
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Request:
    """The options of `flexswitch eval`."""

    zoo: Path
    base: str
    data: Path
    finetuned: Sequence[str] = ()
    metrics: Sequence[str] = ()
    heads: Path | None = None
    methods: Sequence[str] = ("base", "t-switch")
    modes: Sequence[str] = ("per-sample",)
    voting: VotingOptions = field(default_factory=VotingOptions)
    features: Path | None = None
    limit: int | None = None
    max_length: int | None = None
    adapter: str | None = None
    device: str = "cpu"
    engine: Engine = "auto"
    merged: Sequence[str] = ()


def open_evaluation(request: Request) -> Evaluation:
    """Returns an evaluation ready to score. Raises: InputError, UsageError, ArtifactError."""
    check_device(request.device)
    return read_zoo(request.zoo, lambda zoo: _opened(request, zoo))


def _opened(request: Request, zoo: Zoo) -> Evaluation:
    if not len(zoo):
        raise InputError(f"{zoo.path}: holds no tasks; add some: flexswitch pack -o {zoo.path} --add A.fsw")
    sources = read_finetuned(request.finetuned, zoo)
    metrics = _task_pairs("--metric", "NAME", request.metrics, zoo)
    for task, name in metrics.items():
        check_metric(name, task)
    check_methods(request.methods, request.modes, zoo, bool(sources))
    models = _merged_models(request.merged, request.methods)
    base = open_base(request.base)
    check_base(base, zoo.record.base, str(request.zoo))
    vectors: dict[str, TaskVector] = {task: artifact_vector(zoo[task], base) for task in zoo}
    files = {task: task_file(request.data, task, "test") for task in zoo}
    examples = {task: read_examples(path, None, first(request.limit)) for task, path in files.items()}
    finetuned = {task: open_finetuned(source, base) for task, source in sources.items()}
    adapter = get_adapter(base, zoo.record.adapter, request.adapter, request.max_length)
    if getattr(adapter, "kind", None) == "features":
        examples = {task: apart(each) for task, each in examples.items()}
    routed = any(method in ROUTED for method in request.methods)
    router = None
    if routed:
        runner = Runner(adapter, request.device)
        router = StreamRouter(open_router(zoo, runner, request.features, request.voting), examples)
    heads = {} if request.heads is None else _heads(request.heads, zoo, adapter)
    task_models = TaskModels(base, adapter, vectors, examples, request.device, metrics, heads)
    task_models.warm_up()
    compare_with(task_models, finetuned)
    base_score = score_fixed(
        task_models, "base", weights_of(task_models, vectors, 0.0), head_bytes(task_models)
    )
    merged = {name: open_finetuned(source, base) for name, source in models.items()}
    return Evaluation(task_models, zoo, finetuned, router, base_score, request.engine, merged)


def _heads(folder: Path, zoo: Zoo, adapter: Adapter) -> Heads:
    """Returns the heads of files. Raises: UsageError if the models of an adapter take none; InputError."""
    if getattr(adapter, "kind", None) != "features":
        raise UsageError("--heads: the models have heads of their own, or take none; leave it out")
    return read_head_files(folder, zoo, getattr(adapter, "head_of_texts", None))


def read_finetuned(pairs: Sequence[str], zoo: Zoo) -> dict[str, str]:
    """Returns task → checkpoint of `TASK=CHECKPOINT` texts, in the zoo's order.

    Raises: UsageError if a text is not such a pair; InputError if a task is unknown or has no checkpoint.
    """
    found = _task_pairs("--finetuned", "CHECKPOINT", pairs, zoo)
    lacking = [task for task in zoo if task not in found]
    if found and lacking:
        raise InputError(f"--finetuned: the task '{lacking[0]}' has no checkpoint; give one for every task")
    return {task: found[task] for task in zoo} if found else {}


def _merged_models(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, str]:
    """Returns name → model of `NAME=MODEL` texts. Raises: UsageError."""
    found: dict[str, str] = {}
    for text in pairs:
        name, equals, model = text.partition("=")
        if not equals or not name or not model:
            raise UsageError(f"--merged {text}: expected NAME=MODEL")
        if name in found or name in methods:
            raise UsageError(f"--merged {text}: another row is called {name}; give it another name")
        found[name] = model
    return found


def _task_pairs(option: str, value: str, pairs: Sequence[str], zoo: Zoo) -> dict[str, str]:
    """Returns task → value of `TASK=VALUE` texts.

    Raises: UsageError if a text is not such a pair; InputError if a task is unknown.
    """
    found: dict[str, str] = {}
    for text in pairs:
        task, equals, given = text.partition("=")
        if not equals or not given:
            raise UsageError(f"{option} {text}: expected TASK={value}")
        if task not in zoo.record.tasks:
            raise InputError(f"{option} {text}: {unknown_name('task', task, zoo)}")
        found[task] = given
    return found
