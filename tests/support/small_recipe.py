"""A recipe that makes a zoo of two tasks, and one that adds a third."""

from pathlib import Path

RECIPE = """
version: 1
defaults: {base: base.safetensors}
steps:
  - name: compress {task}
    command: compress
    foreach: {task: [red, blue]}
    inputs: ["{task}.safetensors"]
    options: {output: "{task}.fsw", set: {drop: 0.6}}
  - name: pack
    command: pack
    inputs: ["*.fsw"]
    options: {output: zoo}
    expect: {tasks/red/bits_per_parameter: {at_most: 16}}
  - name: verify
    command: verify
    inputs: [zoo]
"""
MORE = """
  - name: compress green
    command: compress
    inputs: [green.safetensors]
    options: {output: more/green.fsw}
  - name: add
    command: pack
    inputs: [more/green.fsw]
    options: {output: zoo, add: true}
"""
ALL = ["compress red", "compress blue", "pack", "verify"]


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the outputs and the lock."""
    files = [*folder.glob("*.fsw"), folder / "recipe.lock", *(folder / "zoo").rglob("*")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.is_file() and path.name != ".lock"
    }
