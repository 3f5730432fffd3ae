"""Tasks that are stored as products of factors, in every way to use them: a zoo, a restored and a switched model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import compressed, file_pair, memory_pair
from support.tiny_models import changed_state
from torch import nn

from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.commands.pack import pack
from flexswitch.merging.commands.verify import verify
from flexswitch.merging.switching.loaded_zoo import Engine
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.add_task import add_task
from flexswitch.merging.task_vectors.restore import restore

METHODS = ["svd", "delta-come", "ultradelta"]
WEIGHTS = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.4], [0, 0]])


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 30)).eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_zoo_restores_and_merges_the_same_weights(tmp_path: Path, method: str) -> None:
    base = module().state_dict()
    pair = file_pair(tmp_path, base, changed_state(base, 1, 0.1))
    artifact = compressed(pair, tmp_path / "task.fsw", method)
    assert any(record.rank for record in artifact.header.tensors.values()) == (method != "ultradelta")
    zoo = pack([artifact.path], tmp_path / "zoo")
    assert verify(tmp_path / "zoo", base=tmp_path / "base.safetensors").lines[0].endswith("counts match")
    expected = restore(tmp_path / "base.safetensors", open_artifact(artifact.path))
    merge([tmp_path / "zoo"], tmp_path / "out", base=tmp_path / "base.safetensors", task="task")
    found = load_file(tmp_path / "out" / "model.safetensors")
    live = {name: tensor.clone() for name, tensor in base.items()}
    add_task(live, zoo["task"], base=tmp_path / "base.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(live[name], tensor)
        assert (tensor - base[name]).norm() > 0


@pytest.mark.parametrize("engine", ["fused", "grouped"])
@pytest.mark.parametrize("method", METHODS)
def test_each_row_gets_the_model_of_its_mixture(tmp_path: Path, method: str, engine: Engine) -> None:
    net = module()
    base = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    artifacts = {
        str(number): compressed(
            memory_pair(base, changed_state(base, number, 0.3)), tmp_path / f"{number}.fsw", method
        )
        for number in range(2)
    }
    inputs = torch.arange(12).reshape(4, 3)
    found = SwitchedModel(net, artifacts, engine=engine)(inputs, weights=WEIGHTS)
    for row, weights in enumerate(WEIGHTS):
        mixed = {name: tensor.clone() for name, tensor in base.items()}
        for artifact, weight in zip(artifacts.values(), weights.tolist(), strict=True):
            add_task(mixed, artifact, weight, check_base=False)
        expected = torch.func.functional_call(net, mixed, (inputs[row : row + 1],))
        torch.testing.assert_close(found[row], expected[0], rtol=1e-4, atol=1e-4)
