"""Chooses the engine that a run is asked for."""

import os

from flexswitch.recipes.digests import Digests
from flexswitch.recipes.engine import Engine, ThisProcess
from flexswitch.recipes.schedule import Room


def make_engine(on: str, jobs: int, address: str | None, digests: Digests) -> Engine:
    """Returns an engine: this process, `jobs` processes of this machine, or a Ray cluster."""
    if on == "ray":
        from flexswitch.recipes.ray_cluster import RayCluster

        return RayCluster(address)
    if jobs == 1:
        return ThisProcess(digests)
    from flexswitch.recipes.processes import Processes

    return Processes(jobs, max(1, (os.cpu_count() or 1) // jobs))


def room(engine: Engine) -> Room:
    """Returns what the machine has, for steps that say what they need; a cluster counts for itself."""
    if engine.counts_room:
        return Room(1 << 60, 1 << 60, 1 << 60)
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    memory = pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else 1 << 60
    return Room(os.cpu_count() or 1, _gpus(), memory)


def _gpus() -> int:
    """Returns the number of GPUs, without asking torch, which takes long to load."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return len([each for each in shown.split(",") if each.strip() not in ("", "-1")])
    names = os.listdir("/dev") if os.path.isdir("/dev") else []
    return sum(name.startswith("nvidia") and name.removeprefix("nvidia").isdigit() for name in names)
