"""The code of docs/queues.md runs as it stands there, on a tiny zoo under the names that it uses."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Runner
from support.imports import ROOT
from support.tiny_models import Toy

BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (ROOT / "docs" / "queues.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


@pytest.mark.deep
def test_the_service_answers_each_request_and_sees_a_changed_zoo(
    text: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flexswitch: Runner
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(text.base, "models/base")
    shutil.copytree(text.zoo, "zoo")
    index = ("index", "zoo", "--base", "models/base", "--exemplars", str(text.data), "--features", "layer:1")
    assert flexswitch(*index).status == 0
    threads = torch.get_num_threads()
    space: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/queues.md", "exec"), space)
    torch.set_num_threads(threads)
    model, tokenizer = space["model"], space["tokenizer"]
    texts = ["a gorgeous, witty film", "She fast ran home.", "so bad"]
    expected = [int(model(dict(tokenizer([each], return_tensors="pt"))).logits.argmax()) for each in texts]
    assert space["classes"] == expected
    assert not space["worker"].is_alive()
    before = model._loaded
    space["refresh_if_changed"]()
    assert model._loaded is before
    assert flexswitch("pack", "-o", "zoo", "--remove", "birds").status == 0
    space["refresh_if_changed"]()
    assert model.tasks == ["cities", "tools"]
