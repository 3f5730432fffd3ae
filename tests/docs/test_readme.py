"""The README's code runs as it stands there, on tiny models under the names that it uses."""

import re
import shlex
from pathlib import Path

import pytest
from support.commands import Runner
from support.imports import ROOT
from support.tiny_models import (
    partly_wrong,
    plain_predictions,
    save_text_base,
    save_text_classifier,
    write_jsonl,
)
from support.tiny_models import texts as toy_texts

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def session() -> list[list[str]]:
    """Returns the words of each command of the first shell session, but for the installation."""
    lines = [shlex.split(line, comments=True) for line in blocks("sh")[0].splitlines()]
    return [words[1:] for words in lines if words[:1] == ["flexswitch"]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with models/base, models/sst2, models/cola and their data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "small").mkdir()
    base = save_text_base(tmp_path / "models" / "base")
    for seed, (task, words) in enumerate({"sst2": "birds", "cola": "tools"}.items(), 1):
        finetuned = save_text_classifier(base, tmp_path / "models" / task, 2, seed)
        write_jsonl(tmp_path / "data" / f"{task}.train.jsonl.gz", toy_texts(words, 20, seed), None)
        inputs = toy_texts(words, 20, seed + 10)
        labels = partly_wrong(plain_predictions(finetuned, base, inputs), 2)
        write_jsonl(tmp_path / "data" / f"{task}.test.jsonl", inputs, labels)
    return tmp_path


def test_the_session_and_the_python_code_run(models: Path, flexswitch: Runner) -> None:
    assert {words[0] for words in session()} >= {"compress", "pack", "inspect", "merge", "index", "eval"}
    for words in session():
        outcome = flexswitch(*words)
        assert outcome.status == 0, f"{' '.join(words)}: {outcome.err}"
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert tuple(namespace["logits"].shape) == (2, 2)  # type: ignore[attr-defined]


def test_the_python_code_uses_public_names_only() -> None:
    code = "\n".join(blocks("python"))
    assert not re.search(r"(from|import) flexswitch\.", code)
    import flexswitch as package

    assert set(re.findall(r"flexswitch\.(\w+)", code)) <= set(package.__all__)
