"""The lock of a recipe: what each finished step read, wrote and found. It is committed and reviewed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_file, named_errors
from flexswitch.recipes.plan import PlannedStep


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StepRecord(_Record):
    """What a finished step was.

    command: its command line. reads, writes: path → digest; a hub id's digest is its commit. versions: of
    the algorithms and formats that it used; another version makes other bytes. environment: what may change
    bytes and is not flexswitch's. result: the figures of its result.
    """

    command: str
    reads: dict[str, str]
    writes: dict[str, str]
    versions: dict[str, int]
    environment: dict[str, str]
    result: dict[str, Any]


class Lock(_Record):
    """The content of a lock. hub: hub id → the commit that it stands for."""

    version: Literal[1] = 1
    hub: dict[str, str] = {}
    steps: dict[str, StepRecord] = {}


class StepFile(_Record):
    """The file of a step beside its output, from its start until the lock has its record.

    stamps: sizes and times of the files read, which a compression that is continued compares. record: None
    while the step is running.
    """

    command: str
    reads: dict[str, str]
    stamps: str
    record: StepRecord | None = None


def lock_file(recipe: Path) -> Path:
    """Returns the path of a recipe's lock."""
    return recipe.with_suffix(".lock")


def read_lock(path: Path) -> Lock:
    """Returns a lock, an empty one where there is none. Raises: InputError where it is damaged."""
    if not os.path.lexists(path):
        return Lock()
    if not path.is_file():
        raise InputError(f"{path}: is no file, and a recipe's lock is written there; move it away")
    try:
        return Lock.model_validate_json(path.read_bytes())
    except ValidationError as reason:
        first = reason.errors()[0]
        where = "/".join(map(str, first["loc"])) or "its JSON"
        raise InputError(
            f"{path}: is no lock of this version ({where}: {first['msg'].lower()}); restore it, or delete it "
            "to run every step anew"
        ) from reason


def write_lock(path: Path, lock: Lock) -> None:
    """Writes a lock, sorted, in one step; an equal one stays as it is."""
    text = json.dumps(lock.model_dump(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if path.is_file() and path.read_bytes() == text.encode():
        return
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def step_file(step: PlannedStep, lock: Path) -> Path:
    """Returns where a step's file is: beside its first output, or beside the lock if it has none."""
    beside = Path(step.outputs[0]) if step.outputs else lock
    name = hashlib.sha256(step.name.encode()).hexdigest()[:12]
    return beside.with_name(f"{beside.name}.{name}.step")


def read_step_file(path: Path) -> StepFile | None:
    """Returns a step's file; None where there is none, or none that can be read."""
    try:
        return StepFile.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_step_file(path: Path, content: StepFile) -> None:
    """Writes a step's file in one step. Its process holds the step's lock, so that no other writes it too."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # nothing is written through a link
    try:
        with named_errors(partial, path):
            partial.write_text(content.model_dump_json(), encoding="utf-8")
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def recorded_figures(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result without times, which differ from run to run."""
    return {
        key: recorded_figures(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if key not in ("time_over_base", "seconds")
    }
