"""What of a base's small files a model that is made of it gets."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import Toy

from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.reporter import Silent

CODE = {"AutoModel": "org/evil--evil.Evil"}
CLEANED: dict[str, tuple[str, str, Any]] = {
    "an escaped name": ("tokenizer_config.json", '{"a": 1, "auto\\u005fmap": {"b": "c"}}', {"a": 1}),
    "any name of a file": ("foo.json", json.dumps({"auto_map": CODE, "a": 1}), {"a": 1}),
    "in depth": ("processor_config.json", json.dumps({"a": [{"auto_map": CODE, "b": 1}]}), {"a": [{"b": 1}]}),
    "kernels": ("generation_config.json", '{"attn_implementation": "org/kernel"}', {}),
}
LEFT_OUT: dict[str, tuple[str, str, str]] = {
    "a module": ("modules.json", '[{"path": "", "type": "evil.module.Cls"}]', "names the class 'evil.module.Cls', which is code to run"),
    "a route": ("router_config.json", '{"types": {"": "evil.Cls"}}', "names the class 'evil.Cls', which is code to run"),
    "an activation": ("1_Dense/config.json", '{"activation_function": "evil.Cls"}', "names the class 'evil.Cls', which is code to run"),
    "no JSON": ("foo.json", "{nope", "is not JSON"),
    "deep JSON": ("foo.json", "[" * 200 + "]" * 200, "is not JSON (nested more than 100 levels deep)"),
}  # fmt: skip


class Notes(Silent):
    """Keeps a command's notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keeps a note."""
        self.notes.append(text)


def merged(text: Toy, base: Path) -> tuple[Path, list[str]]:
    """Returns the directory of a merge with a base, and the notes."""
    reporter = Notes()
    merge([text.zoo], base.parent / "out", base=base, task="birds", reporter=reporter)
    return base.parent / "out", reporter.notes


@pytest.fixture
def base(text: Toy, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text.base, tmp_path / "base"))


@pytest.mark.parametrize("situation", CLEANED)
def test_entries_that_name_code_are_not_copied_from_a_base(text: Toy, base: Path, situation: str) -> None:
    name, content, expected = CLEANED[situation]
    (base / name).write_text(content)
    out, notes = merged(text, base)
    assert json.loads((out / name).read_text()) == expected
    assert not notes


@pytest.mark.parametrize("situation", LEFT_OUT)
def test_a_base_s_file_that_may_run_code_or_is_no_json_is_left_out_by_name(
    text: Toy, base: Path, situation: str
) -> None:
    name, content, reason = LEFT_OUT[situation]
    (base / "modules.json").write_text('[{"path": "1_Dense", "type": "sentence_transformers.models.Dense"}]')
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_text(content)
    out, notes = merged(text, base)
    assert not (out / name).exists()
    assert [note for note in notes if note.startswith(f"left out {base / name}: {reason}")] == notes != []


def test_a_file_without_code_is_copied_byte_by_byte(text: Toy, base: Path) -> None:
    (base / "foo.json").write_bytes(b'{"a":   1}')
    (base / "vocab.json").write_bytes(b'{"auto_map":   1}')  # the keys of a vocabulary are tokens
    out, notes = merged(text, base)
    for name in ("foo.json", "vocab.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert not notes


@pytest.mark.parametrize("name", ["foo.json", "notes.txt", "vocab.json", "chat_template.jinja"])
def test_a_link_that_leaves_a_base_is_left_out_by_name(text: Toy, base: Path, name: str) -> None:
    (base.parent / "secret").write_text('{"secret": 1}')
    (base / name).symlink_to(base.parent / "secret")
    out, notes = merged(text, base)
    assert not (out / name).exists()
    assert notes == [
        f"left out {base / name}: is a link to a file outside the base; put the file itself there"
    ]


def test_links_inside_a_base_and_in_the_hub_s_cache_are_followed(text: Toy, tmp_path: Path) -> None:
    base = Path(shutil.copytree(text.base, tmp_path / "models--org--base" / "snapshots" / ("0" * 40)))
    blobs = tmp_path / "models--org--base" / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(base.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    (base / "foo.json").symlink_to("tokenizer_config.json")
    (tmp_path / "other").symlink_to(base)
    out, notes = merged(text, tmp_path / "other")
    assert (out / "tokenizer.json").read_bytes() == (text.base / "tokenizer.json").read_bytes()
    assert (out / "foo.json").is_file()
    assert not notes
