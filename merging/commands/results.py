"""What the commands return, as the JSON documents of `--json`, the lock of a recipe and its expectations."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexswitch.codecs.format.container import Artifact
    from flexswitch.codecs.format.zoo import TaskRecord, Zoo
    from flexswitch.merging.commands.evaluate import Evaluated
    from flexswitch.merging.commands.index import Indexed
    from flexswitch.merging.commands.merge import Merged
    from flexswitch.merging.commands.push import Pushed
    from flexswitch.merging.commands.verify import Verified
    from flexswitch.merging.evaluation.scores import Score
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile


def extracted(vector: "TaskVectorFile") -> dict[str, Any]:
    """Returns the result of `extract`."""
    return {
        "output": str(vector.path),
        "task": vector.header.name,
        "tensors": len(vector.tensors),
        "parameters": vector.parameters,
        "extras": sorted(vector.extras),
        "bytes": vector.path.stat().st_size,
        "base": vector.header.base.model_dump(),
    }


def compressed(artifact: "Artifact") -> dict[str, Any]:
    """Returns the result of `compress`."""
    header, stored = artifact.header, artifact.path.stat().st_size
    document = {
        "output": str(artifact.path),
        "task": header.name,
        "method": header.method.name,
        "settings": header.method.settings,
        "parameters": header.parameters,
        "kept": header.parameters if header.exact else header.kept,
        "bytes": stored,
        "bits_per_parameter": 8 * stored / max(1, header.parameters),
    }
    if header.error is not None:
        document["relative_error"] = header.error.relative
        document["worst_tensors"] = header.error.worst
    if header.budget is not None:
        document["budget"] = header.budget.model_dump(mode="json")
    if header.training is not None:
        document["training"] = header.training.model_dump(exclude={"curve"})
    return document


def packed(zoo: "Zoo") -> dict[str, Any]:
    """Returns the result of `pack`."""
    tasks = {task: _stored(record) for task, record in zoo.record.tasks.items()}
    shared = None if zoo.record.shared is None else _stored(zoo.record.shared)
    return {"output": str(zoo.path), "tasks": tasks, "shared": shared, "bytes": zoo.stored_bytes()}


def _stored(record: "TaskRecord") -> dict[str, Any]:
    return {
        "method": record.method,
        "bytes": record.size,
        "bits_per_parameter": 8 * record.size / max(1, record.parameters),
        "relative_error": record.relative_error,
    }


def indexed(made: "Indexed") -> dict[str, Any]:
    """Returns the result of `index`."""
    return {"zoo": str(made.zoo), **made.record.model_dump(), "added": made.added, "notes": made.notes}


def merged(made: "Merged") -> dict[str, Any]:
    """Returns the result of `merge`."""
    stored = sum(file.stat().st_size for file in made.path.iterdir())
    document = {"output": str(made.path), "tasks": made.tasks, "method": made.method, "bytes": stored}
    return document | ({"report": made.report} if made.report else {})


def verified(made: "Verified") -> dict[str, Any]:
    """Returns the result of `verify`."""
    return {"path": str(made.path), "ok": True, "checked": made.lines}


def pushed(made: "Pushed") -> dict[str, Any]:
    """Returns the result of `push`."""
    return {
        "repository": made.repository,
        "files": made.files,
        "bytes": sum(made.files.values()),
        "commit": made.commit,
    }


def evaluated(made: "Evaluated") -> dict[str, Any]:
    """Returns the result of `eval`."""
    individual = next((score for score in made.scores if score.method == "individual"), None)
    shares = {score.method: score.shares_of(individual) if individual else [] for score in made.scores}
    methods = {
        score.method: {
            "scores": score.values,
            "average": score.average,
            "share_of_individual": shares[score.method][0] if shares[score.method] else None,
            "least_share_of_individual": min(shares[score.method], default=None),
            "bytes_per_task": score.bytes_per_task,
            **_routing(score),
            "time_over_base": score.time_over_base or score.seconds / made.forward_seconds,
        }
        for score in made.scores
    }
    return {
        "tasks": list(made.metrics),
        "metrics": made.metrics,
        "index_bytes": made.index_bytes,
        "methods": methods,
    }


def _routing(score: "Score") -> dict[str, Any]:
    if score.routing is None:
        return {"routing_accuracy": None}
    return {
        "routing_accuracy": score.routing.accuracy,
        "weight_entropy": score.routing.entropy,
        "snapped": score.routing.snapped,
        "confusion": score.routing.counts.tolist(),
    }
