"""Makes and changes zoos of small artifacts, for the tests of packing."""

import shutil

from support.tiny_models import pack, state_artifacts

from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.zoos.pack import Form, change_zoo, create_zoo

TASKS = ["birds", "cities", "tools"]
AUTO = Form()


def make_originals(folder):
    """Makes four artifacts of one base, a zoo of three of them, and an artifact `fish` of another base."""
    files = state_artifacts(folder / "made", [*TASKS, "planets"])
    pack(folder / "zoo", [files[task] for task in TASKS])
    state_artifacts(folder / "other", ["fish"], base_seed=1)
    return folder


def copy_artifacts(originals, folder):
    """Returns task -> copy of its artifact, in a folder with base.safetensors."""
    shutil.copytree(originals / "made", folder)
    return {task: folder / f"{task}.fsw" for task in (*TASKS, "planets")}


def create(path, files, form=AUTO, adapter=None, overwrite=False):
    packed = []
    _, notes = create_zoo(path, files, form, adapter, overwrite, packed.append)
    assert packed == [open_artifact(file).header.name for file in files]
    return notes


def change(path, add=(), remove=(), form=AUTO, adapter=None, overwrite=False):
    return change_zoo(path, list(add), list(remove), form, adapter, overwrite, lambda task: None)[1]
