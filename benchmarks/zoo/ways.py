"""Runs one recipe in several ways, some of them killed, and compares what they write."""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from models import write_recipe

_KILLS = 10
_SHARES = 4
_NODES = """
import sys
from ray.cluster_utils import Cluster
size = {"num_cpus": 1, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
nodes = [cluster.add_node(**size) for _ in range(2)]
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
cluster.shutdown()
"""
Way = Callable[[Path], list[str]]


def ways(work: Path, tasks: int) -> list[list[str]]:
    """Returns a row for each way: the steps done, those done twice, and whether all bytes are the same."""
    folder = work / "ways"
    folder.mkdir()
    shutil.copytree(work / "base", folder / "base")
    (folder / "models").mkdir()
    names = [f"t{number}" for number in range(tasks)]
    for name in names:
        (folder / "models" / f"{name}.safetensors").hardlink_to(work / "models" / f"{name}.safetensors")
    write_recipe(folder, names)
    kinds: dict[str, Way] = {
        "one process": lambda folder: _finished(folder),
        "two processes": lambda folder: _finished(folder, "--jobs", "2"),
        f"{_SHARES} shares, then the whole": _shares,
        f"two processes, killed {_KILLS} times": _killed,
    }
    if find_spec("ray"):
        kinds |= {
            "Ray, three nodes": lambda folder: _ray(folder, lose=False),
            "Ray, three nodes, one of them lost": lambda folder: _ray(folder, lose=True),
        }
    rows, expected = [], ""
    for name, way in kinds.items():
        done, digest = way(folder), _digest(folder)
        expected = expected or digest
        again = len(done) - len(set(done))
        rows.append([name, str(len(set(done))), str(again), "same" if digest == expected else "**differ**"])
        for path in ("artifacts", "zoo", "zoo.logs"):
            shutil.rmtree(folder / path)
        (folder / "zoo.lock").unlink()
    return rows


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "flexswitch.cli", "run", "zoo.yaml", *words]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _steps(lines: Iterable[str] | None) -> Iterator[str]:
    """Yields the names of steps as a run says that they are done."""
    for line in lines or ():
        if ": done in " in line:
            yield line.split(": ")[2]


def _finished(folder: Path, *words: str) -> list[str]:
    """Returns the steps of a run. Raises: SystemExit where it fails."""
    with _start(folder, *words) as process:
        done = list(_steps(process.stderr))
    if process.returncode:
        raise SystemExit(f"run {' '.join(words)}: exit status {process.returncode}")
    return done


def _shares(folder: Path) -> list[str]:
    done = []
    for number in range(1, _SHARES + 1):
        done += _finished(folder, "--shard", f"{number}/{_SHARES}")
    return done + _finished(folder)


def _killed(folder: Path) -> list[str]:
    """Kills the run after random numbers of finished steps; a killed run's unfinished step is not counted."""
    draw, done = random.Random(0), list[str]()
    for _ in range(_KILLS):
        with _start(folder, "--jobs", "2") as process:
            steps = _steps(process.stderr)
            done += [name for _, name in zip(range(draw.randint(1, 3)), steps, strict=False)]
            process.send_signal(signal.SIGKILL)
            done += steps  # those that it had said before it died
    return done + _finished(folder, "--jobs", "2")


def _ray(folder: Path, lose: bool) -> list[str]:
    with subprocess.Popen(
        [sys.executable, "-c", _NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        address = nodes.stdout.readline().strip()
        with _start(folder, "--on", "ray", "--address", address) as process:
            steps = _steps(process.stderr)
            done = [next(steps)]
            if lose:
                print("lose one", file=nodes.stdin, flush=True)
            done += steps
        nodes.stdin.close()
    if process.returncode:
        raise SystemExit(f"run --on ray: exit status {process.returncode}")
    return done


def _digest(folder: Path) -> str:
    """Returns the digest of all outputs and of the lock."""
    files = [*(folder / "artifacts").rglob("*"), *(folder / "zoo").rglob("*"), folder / "zoo.lock"]
    found = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file() and path.name != ".lock"):
        found.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
