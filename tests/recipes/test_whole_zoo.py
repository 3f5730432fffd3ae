"""A recipe from checkpoints to scores: learned compression, an index, and every kind of step."""

import json
from pathlib import Path

import pytest
import yaml
from support.tiny_models import Toy


def recipe(toy: Toy) -> dict[str, object]:
    finetuned = {task: str(path) for task, path in toy.finetuned.items()}
    learned = sorted(finetuned)[0]
    return {
        "version": 1,
        "defaults": {"base": str(toy.base), "data": str(toy.data), "finetuned": finetuned},
        "steps": [
            {"name": "extract " + task, "command": "extract", "inputs": [str(toy.base), path],
             "options": {"output": f"vectors/{task}.tv.safetensors"}}
            for task, path in finetuned.items()
        ] + [
            {"name": "compress {task}", "command": "compress", "foreach": {"task": sorted(finetuned)},
             "inputs": ["vectors/{task}.tv.safetensors"], "options": {"output": "signs/{task}.fsw"}},
            {"name": "learn", "command": "compress", "inputs": [f"vectors/{learned}.tv.safetensors"],
             "options": {"output": f"learned/{learned}.fsw", "exemplars": str(toy.data), "per-task": 12,
                         "target-size": "4KB", "set": {"steps": 6, "min_exemplars": 8}}},
            {"name": "pack", "command": "pack", "inputs": ["signs/*.fsw"], "options": {"output": "zoo"}},
            {"name": "verify packed", "command": "verify", "inputs": ["zoo"]},
            {"name": "index", "command": "index", "inputs": ["zoo"],
             "options": {"exemplars": str(toy.data), "per-task": 8, "metric": "euclidean"}},
            {"name": "verify indexed", "command": "verify", "inputs": ["zoo"]},
            {"name": "eval", "command": "eval", "inputs": ["zoo"],
             "options": {"methods": "base,individual,t-switch,auto-switch", "plot": "plots/scores.png"},
             "expect": {"methods/t-switch/average": {"at_least": 0}}},
            {"name": "merge", "command": "merge", "inputs": ["zoo"],
             "options": {"output": "merged", "method": "task-arithmetic", "set": {"lambda": 0.3}}},
        ],
    }  # fmt: skip


@pytest.mark.deep
def test_a_recipe_goes_from_checkpoints_to_scores_and_goes_on_where_it_was(
    text, tmp_path, monkeypatch, flexswitch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLEXSWITCH_CACHE", str(tmp_path / "cache"))
    document = recipe(text)
    Path("r.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def ran() -> list[str]:
        outcome = flexswitch("run", "r.yaml", "--json")
        assert outcome.status == 0, outcome.err
        return [step["name"] for step in json.loads(outcome.out)["steps"] if step["status"] == "done"]

    assert ran()[-6:] == ["pack", "verify packed", "index", "verify indexed", "eval", "merge"]
    assert Path("plots/scores.png").is_file()
    assert ran() == []
    assert flexswitch("run", "r.yaml", "--check").status == 0
    lock = json.loads(Path("r.lock").read_text())["steps"]
    assert "torch" in lock["learn"]["environment"]
    assert "time_over_base" not in Path("r.lock").read_text()
    assert (
        lock["verify packed"]["reads"]["zoo"]
        == lock["pack"]["writes"]["zoo"]
        == lock["index"]["reads"]["zoo"]
    )
    assert (
        lock["verify indexed"]["reads"]["zoo"]
        == lock["index"]["writes"]["zoo"]
        != lock["pack"]["writes"]["zoo"]
    )
    document["steps"][-4]["options"]["per-task"] = 9
    Path("r.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    # The index needs the zoo as it was packed, and so that is packed again.
    assert ran() == ["pack", "index", "verify indexed", "eval", "merge"]
