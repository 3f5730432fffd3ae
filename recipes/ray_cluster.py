"""An engine of a Ray cluster: each step is a Ray task on a shared file system."""

import importlib.metadata
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexswitch.codecs.errors import ExitStatus, InputError
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.execute import Task
from flexswitch.recipes.recipe import Needs
from flexswitch.recipes.step_run import Event, Failure, open_log, run_step

_RETRIES = 5  # of a step whose worker or node died
_COMPARED = ("flexswitch", "numpy", "ray", "safetensors", "torch", "zstandard")


class RayCluster:
    """Runs tasks on the nodes of a cluster, where their cpus, gpus and memory are free."""

    counts_room = True

    def __init__(self, address: str | None) -> None:
        self._ray = _imported()
        self._ray.init(
            address=address, include_dashboard=False, log_to_driver=False, configure_logging=False,
            runtime_env={"env_vars": {"FLEXSWITCH_CACHE": os.environ.get("FLEXSWITCH_CACHE", "")}},
        )  # fmt: skip
        self.slots = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._running: dict[Any, Task] = {}
        _check_nodes(self._ray)

    def start(self, task: Task) -> None:
        """Gives a task to the cluster."""
        remote = self._ray.remote(_run).options(
            max_retries=_RETRIES, retry_exceptions=False, **_resources(task.step.needs)
        )
        absolute = replace(task, lock=Path(os.path.abspath(task.lock)))
        self._running[remote.remote(absolute, os.getcwd())] = task

    def wait(self, seconds: float) -> list[Event]:
        """Returns the ends of tasks."""
        done, _ = self._ray.wait(list(self._running), timeout=seconds)
        events = []
        for reference in done:
            task = self._running.pop(reference)
            try:
                events.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                message = f"its Ray task was lost, and tried {_RETRIES} times again: {reason}"
                events.append(Event(task.number, Failure(message, int(ExitStatus.INPUT))))
        return events

    def close(self) -> None:
        """Cancels what runs, and leaves the cluster."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


def _run(task: Task, folder: str) -> Event:
    """Runs a step on a node."""
    os.chdir(folder)
    threads = task.threads or task.step.needs.cpus or 1
    with open_log(task) as log:
        return run_step(replace(task, threads=threads), Digests(), log, lambda event: None)


def _resources(needs: Needs) -> dict[str, Any]:
    found: dict[str, Any] = {"num_cpus": needs.cpus or 1, "num_gpus": needs.gpus or 0}
    return found | ({"memory": needs.memory_bytes} if needs.memory else {})


def _check_nodes(ray: Any) -> None:
    """Raises: InputError where a node has other versions, or lacks the folder of the run."""
    here, folder = _versions(), os.getcwd()
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = ray.remote(_look).options(num_cpus=0, scheduling_strategy=place)
        there, has_folder = ray.get(look.remote(folder))
        name = node["NodeManagerHostname"]
        for package, version in here.items():
            if there.get(package) != version:
                raise InputError(
                    f"the node {name} has {package} {there.get(package, 'not')}, expected {version} as here; "
                    "install the same versions on all nodes"
                )
        if not has_folder:
            raise InputError(f"the node {name} has no folder {folder}; run in a folder that all nodes share")


def _look(folder: str) -> tuple[dict[str, str], bool]:
    return _versions(), os.path.isdir(folder)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _COMPARED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def _imported() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as reason:
        raise InputError("--on ray needs Ray: pip install 'flexswitch[ray]'") from reason
    return ray
