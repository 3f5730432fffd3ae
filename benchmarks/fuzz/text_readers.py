"""The fuzzing targets of recipes, zoos and examples, for python benchmarks/fuzz/run.py.

Each reader gets files that begin as valid ones and whose values, keys, nesting and bytes are changed.
"""

import gzip
import io
import json
import random
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from documents import Change, mutate_json
from reader import Reader
from safetensors.numpy import save_file

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.peer_config import read_document, read_peer_config
from flexswitch.merging.models.examples import SUFFIXES, read_examples
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.recipes.graph import make_graph
from flexswitch.recipes.plan import make_plan

# Recipes


def recipe_seeds(work: Path) -> Iterator[bytes]:
    """Yields the recipes that ship, as YAML and as JSON, which is YAML too, and pieces of YAML's own."""
    import yaml

    for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml")):
        yield path.read_bytes()
        yield json.dumps(yaml.safe_load(path.read_text())).encode()
    step = "version: 1\nsteps:\n- &s {name: !!str a, command: pack, inputs: [b, 2026-01-01, 0x1f, .inf, ~]}\n"
    yield (step + "- *s\n- {<<: *s, ? [c] : d, e: !!binary aGk=, f: !!set {g}}\n").encode()
    yield b"version: 1\nsteps:\n- name: |\n    a\n  command: >-\n    pack\n  expect: {a/b: {at_least: 1e3}}\n"


def read_a_recipe(data: bytes, work: Path) -> None:
    """Reads a recipe and makes the graph of its steps."""
    path = work / "fuzzed.yaml"
    path.write_bytes(data)
    make_graph(make_plan(path))


# Configurations of mergekit


def merge_config_seeds(work: Path) -> Iterator[bytes]:
    """Yields configurations of two models, as YAML and as JSON, with conditions, lists and one slice."""
    for model in ("base", "red"):
        (work / model).mkdir(exist_ok=True)
        (work / model / "config.json").write_text('{"num_hidden_layers": 2}')
    base, red = str(work / "base"), str(work / "red")
    filtered = "[{filter: mlp, value: [0.1, 1]}, {value: 1}]"
    yield (
        f"models:\n- model: {red}\n  parameters: {{weight: {filtered}}}\n"
        f"base_model: {base}\nmerge_method: ties\nparameters: {{density: 0.5, normalize: true}}\n"
    ).encode()
    layers = [{"model": model, "layer_range": [0, 2]} for model in (base, red)]
    parameters = {"t": [{"filter": "attn", "value": [0, 0.5]}, {"value": 0.5}]}
    document = {
        "slices": [{"sources": layers}], "base_model": base, "merge_method": "slerp", "dtype": "bfloat16",
        "parameters": parameters,
    }  # fmt: skip
    yield json.dumps(document).encode()


def read_a_merge_config(data: bytes, work: Path) -> None:
    """Reads a configuration and checks the settings that it asks for."""
    path = work / "fuzzed.yaml"
    path.write_bytes(data)
    asked = read_peer_config(path, read_document(path))
    check = merge.check  # type: ignore[attr-defined]
    check(
        asked.sources, work / "merged", base=asked.base, method=asked.method, settings=asked.settings,
        weights=asked.weights, set_for=asked.set_for, dtype=asked.dtype,
    )  # fmt: skip


# Zoos


def zoo_seeds(work: Path) -> Iterator[bytes]:
    """Yields the documents of a zoo of two tasks, and of one whose tasks share a vector, made first."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.normal(size=(24, 16)).astype(np.float32)}
    save_file(weights, work / "base.safetensors")
    for task in ("red", "blue"):
        save_file({"w": weights["w"] + np.float32(len(task))}, work / f"{task}.safetensors")
        compress(
            work / f"{task}.safetensors", work / f"{task}.fsw", base=work / "base.safetensors", overwrite=True
        )
    pack([work / "red.fsw", work / "blue.fsw"], work / "zoo", overwrite=True)
    yield (work / "zoo" / "zoo.json").read_bytes()
    document = json.loads((work / "zoo" / "zoo.json").read_bytes())
    document["index"] = {"size": 1, "sha256": "ab" * 32, "features": "pooled", "per_task": 1, "seed": 0}
    yield json.dumps(document).encode()
    sources = [work / f"{task}.safetensors" for task in ("red", "blue")]
    pack(sources, work / "sharing", share="emr", base=work / "base.safetensors", overwrite=True)
    shutil.copytree(work / "sharing", work / "zoo", dirs_exist_ok=True)
    yield (work / "sharing" / "zoo.json").read_bytes()


def read_a_zoo(data: bytes, work: Path) -> None:
    """Opens a zoo and all its tasks, and looks for its index."""
    (work / "zoo" / "zoo.json").write_bytes(data)
    zoo = open_zoo(work / "zoo")
    for task in zoo:
        zoo[task].check("w")
        deque(artifact_vector(zoo[task]).blocks("w"), maxlen=0)
    if zoo.record.index is not None:
        zoo.index_file()


# Examples


def example_seeds(work: Path) -> Iterator[bytes]:
    """Yields files of all suffixes; the first byte says which."""
    lines = b'{"text": "one", "label": 0}\n{"text": "two \\u00e9", "label": 1}\n'
    yield b"\1" + lines
    yield b"\0" + gzip.compress(lines, mtime=0)
    yield b"\2" + b'text,label\none,0\n"two, and ""three""",1\n'
    for arrays in (
        {"x": np.zeros((2, 3, 4, 4), np.uint8), "y": np.arange(2)},
        {"x": np.ones((3, 2), np.float32)},
    ):
        file = io.BytesIO()
        np.savez(file, **arrays)
        yield b"\4" + file.getvalue()
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        return
    sink = io.BytesIO()
    parquet.write_table(arrow.table({"text": ["one", "two"], "label": [0, 1]}), sink)
    yield b"\3" + sink.getvalue()


def mutate_examples(data: bytes, draw: random.Random, change: Change) -> bytes:
    """Returns a changed file of examples; of lines of JSON one is changed, inside a gz too."""
    kind, body = data[:1], data[1:]
    if draw.randrange(20) == 0:
        return draw.randbytes(1) + body
    if kind == b"\0" and draw.random() < 0.7:
        try:
            lines = gzip.decompress(body)
        except (OSError, EOFError, zlib.error):
            return kind + change(body)
        return kind + gzip.compress(mutate_examples(b"\1" + lines, draw, change)[1:], mtime=0)
    if kind == b"\1" and draw.random() < 0.8:
        lines = body.split(b"\n")
        number = draw.randrange(len(lines))
        lines[number] = mutate_json(lines[number], ("text", "label", 1, 2.5, "a"), draw, change)
        return kind + b"\n".join(lines)
    return kind + change(body)


def read_some_examples(data: bytes, work: Path) -> None:
    """Reads examples, with and without their labels."""
    suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ".jsonl"
    path = work / f"task.test{suffix}"
    path.write_bytes(data[1:])
    read_examples(path, labelled=False)
    read_examples(path, labelled=True)


RECIPE_WORDS = (
    "name", "command", "pack", "inputs", "options", "set", "foreach", "{task}", "expect", "at_least",
    "equals",     "version", "add", "output",
)  # fmt: skip
MERGE_WORDS = (
    "model", "models", "slices", "sources", "layer_range", "base_model", "merge_method", "weight", "filter",
    "parameters", "density", "normalize", "value", "dtype", "out_dtype", "tokenizer_source", "float16",
)  # fmt: skip
ZOO_WORDS = (
    "tasks", "red", "index", "base", "adapter", "file", "size", "sha256", "CON", "..", "a/b", "-x",
    "features",     "auto",
)  # fmt: skip
TEXT_READERS = {
    "recipe": Reader("a recipe", recipe_seeds, read_a_recipe, RECIPE_WORDS),
    "merge-config": Reader(
        "a configuration of mergekit", merge_config_seeds, read_a_merge_config, MERGE_WORDS
    ),
    "zoo": Reader("zoo.json", zoo_seeds, read_a_zoo, ZOO_WORDS),
    "examples": Reader("examples", example_seeds, read_some_examples, own_mutate=mutate_examples),
}
