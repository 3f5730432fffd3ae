"""Wrong input ends with one line that says what to do and a fixed status, and leaves nothing behind."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.artifact_files import stored_form
from support.commands import write_base
from support.zoo_files import task_file

from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.opening import open_checkpoint

COMPRESS = ("--base", "base.safetensors", "-o", "out.fsw", "--method", "t-switch")


def test_a_missing_path(models, fails):
    message = "nowhere/red: no such file or directory; expected a checkpoint, or a hub id org/name"
    fails(models, 1, "./" + message, "compress", "./nowhere/red", *COMPRESS)


def test_a_folder_that_is_no_checkpoint(models, fails):
    (models / "empty").mkdir()
    fails(
        models, 1,
        "empty: not a checkpoint: it has none of model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json, adapter_config.json",
        "compress", "empty", *COMPRESS,
    )  # fmt: skip


def test_a_file_that_is_no_checkpoint(models, fails):
    (models / "notes.txt").write_text("hello")
    fails(
        models, 1,
        "notes.txt: not a checkpoint: the suffix is '.txt', expected .safetensors, .bin, .pt, .pth, .pth.tar or .ckpt",
        "extract", "base.safetensors", "notes.txt", "-o", "out.tv.safetensors",
    )  # fmt: skip


def test_a_truncated_safetensors_file(models, fails):
    path = models / "red.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 100)
    fails(
        models, 1,
        f"red.safetensors: cut short, or its header lies: tensor 'layer.weight' ends at byte {size:,} and "
        f"the file at {size - 100:,}; download or save it again",
        "compress", "red.safetensors", *COMPRESS,
    )  # fmt: skip


def test_a_header_that_asks_for_more_than_the_file(models, fails):
    path = models / "red.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    fails(
        models, 1,
        f"red.safetensors: not a safetensors file, or cut short: its first bytes ask for a header of "
        f"{1 << 60:,} bytes, and {len(data) - 8:,} follow; download or save it again",
        "compress", "red.safetensors", *COMPRESS,
    )  # fmt: skip


def test_a_header_that_lies_about_a_size(models, fails):
    path = models / "red.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[24]', b'"shape":[25]'))
    fails(
        models, 1,
        "red.safetensors: its header lies: tensor 'layer.bias' of shape [25] and dtype F32 has 96 bytes",
        "compress", "red.safetensors", *COMPRESS,
    )  # fmt: skip


def test_another_base_than_the_artifacts_own(zoo, fails):
    write_base(zoo / "other.safetensors", seed=9)
    other = open_checkpoint(str(zoo / "other.safetensors"))
    found = fingerprint(other)
    wanted = json.loads((zoo / "zoo" / "zoo.json").read_text())["base"]["fingerprint"]
    message = (
        f"other.safetensors: is not the base of {{}}: its fingerprint is {found[:12]}, expected "
        f"{wanted[:12]}; give the base it was made from"
    )
    merge = ("merge", "zoo", "--base", "other.safetensors", "-o", "merged")
    fails(zoo, 1, message.format(task_file(Path("zoo"), "red")), *merge, "--task", "red")
    exemplars = zoo / "data"
    exemplars.mkdir()
    for task in ("red", "blue"):
        (exemplars / f"{task}.train.jsonl").write_text('{"text": "one"}\n')
    index = ("index", "zoo", "--base", "other.safetensors", "--exemplars", "data")
    fails(zoo, 1, message.format("zoo"), *index)
    fails(zoo, 1, message.format("zoo"), "eval", "zoo", "--base", "other.safetensors", "--data", "data")


def test_verify_checks_every_byte_of_the_base_and_ends_with_status_1(zoo, fails):
    path = zoo / "base.safetensors"
    wanted = json.loads((zoo / "zoo" / "zoo.json").read_text())["base"]["fingerprint"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = fingerprint(open_checkpoint(str(path)))
    message = (
        f"base.safetensors: is not the base of zoo: its fingerprint is {found[:12]}, expected {wanted[:12]}; "
        "give the base it was made from"
    )
    fails(zoo, 1, message, "verify", "zoo", "--base", "base.safetensors")


def test_a_tensor_of_another_shape(models, fails):
    state = load_file(models / "red.safetensors")
    state["embed.weight"] = np.zeros((41, 16), np.float32)
    save_file(state, models / "red.safetensors")
    fails(
        models, 1,
        "red.safetensors: tensor 'embed.weight' has the shape [41, 16], expected the base's [40, 16]; store it "
        "whole with --on-resize extra, or take the overlapping rows with --on-resize rows",
        "compress", "red.safetensors", *COMPRESS,
    )  # fmt: skip


def test_a_zoo_without_an_index(zoo, fails):
    command = ("eval", "zoo", "--base", "base.safetensors", "--data", "data", "--methods", "auto-switch")
    message = "zoo: the zoo has no query index; build one: flexswitch index zoo --base BASE --exemplars DIR"
    fails(zoo, 1, message, *command)


def write_exemplars(folder, *tasks):
    (folder / "data").mkdir()
    for task in tasks:
        (folder / "data" / f"{task}.train.jsonl").write_text('{"text": "one"}\n')
    return ("index", "zoo", "--base", "base.safetensors", "--exemplars", "data")


def test_a_task_without_exemplars(zoo, fails):
    command = write_exemplars(zoo, "red")
    message = (
        "data: has no train file of the task 'blue'; expected blue.train with one of .jsonl.gz, .jsonl, .csv, "
        ".parquet, .npz (it has: red)"
    )
    fails(zoo, 1, message, *command)


def test_an_empty_exemplar_file(zoo, fails):
    command = write_exemplars(zoo, "red", "blue")
    (zoo / "data" / "blue.train.jsonl").write_text("")
    fails(zoo, 1, "data/blue.train.jsonl: has no examples; expected at least one", *command)


def test_flipped_bits_in_an_artifact_are_reported_by_tensor(zoo, fails):
    path = zoo / "red.fsw"
    content = stored_form(open_artifact(path), "layer.weight").data
    data = bytearray(path.read_bytes())
    offset = data.index(content)
    data[offset + 5] ^= 0x10
    path.write_bytes(data)
    found = zlib.crc32(data[offset : offset + len(content)])
    message = (
        f"{{}}: tensor 'layer.weight', block 0, is damaged: its checksum is {found:08x}, expected "
        f"{zlib.crc32(content):08x}; restore the file from a copy, or compress it again"
    )
    fails(zoo, 3, message.format("red.fsw"), "verify", "red.fsw")
    fails(
        zoo,
        3,
        message.format("red.fsw"),
        "merge",
        "red.fsw",
        "--base",
        "base.safetensors",
        "-o",
        "m",
        "--task",
        "red",
    )
    packed = task_file(Path("zoo"), "red")
    shutil.copyfile(path, packed)
    fails(zoo, 3, message.format(packed), "verify", "zoo")


@pytest.mark.parametrize("file", ["../red.fsw", "/etc/passwd", "tasks/../../red.fsw", "tasks/blue.fsw"])
def test_path_tricks_in_a_zoo(zoo, fails, file):
    path = zoo / "zoo" / "zoo.json"
    document = json.loads(path.read_text())
    expected, document["tasks"]["red"]["file"] = document["tasks"]["red"]["file"], file
    path.write_text(json.dumps(document))
    message = (
        f"zoo/zoo.json: task 'red' names the file '{file}', expected '{expected}', which its hash gives; "
        "do not use a zoo that you did not make"
    )
    for command in (("verify", "zoo"), ("inspect", "zoo"), ("pack", "-o", "zoo", "--remove", "blue")):
        fails(zoo, 3, message, *command)


def test_a_zoo_whose_task_file_is_swapped_for_another(zoo, fails):
    red, blue = (task_file(Path("zoo"), task) for task in ("red", "blue"))
    size, found = red.stat().st_size, blue.stat().st_size
    shutil.copyfile(blue, red)
    message = (
        f"{red}: is not the file that was packed as task 'red': {found:,} bytes where zoo.json says "
        f"{size:,}, or another SHA-256; restore it from a copy, or pack it again"
    )
    fails(zoo, 3, message, "verify", "zoo")
    merge = ("merge", "zoo", "--base", "base.safetensors", "-o", "merged", "--task", "red")
    fails(zoo, 3, message, *merge)
