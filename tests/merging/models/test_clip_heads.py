"""Heads of CLIP's vision encoders, from files and from texts, compared with transformers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.checkpoints import memory_pair, message
from support.tiny_models import changed_state, make_artifact, pack, write_tokenizer
from torch import Tensor, nn
from torch.nn import functional

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.evaluate import evaluate
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.head_files import read_head_files
from flexswitch.merging.switching.switched_model import SwitchedModel

TEXTS = [["word0 word1"], ["word2", "word3 word4"], ["word5"]]
_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "projection_dim": 8,
    "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole CLIP model, a fine-tune of its vision encoder, their zoo, data and heads."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {
        "vocab_size": 40,
        "max_position_embeddings": 16,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "bos_token_id": 2,
    }
    config = transformers.CLIPConfig(
        text_config=_SIZES | text, vision_config=_SIZES | {"image_size": 8, "patch_size": 4}, projection_dim=8
    )
    model = transformers.CLIPModel(config)
    model.save_pretrained(folder / "base")
    write_tokenizer(folder / "base")
    state = model.state_dict()
    vision = {name: each for name, each in state.items() if name.startswith("vision_model.")}
    model.load_state_dict(state | changed_state(vision, 1, size=0.2))
    model.save_pretrained(folder / "birds-model")
    write_tokenizer(folder / "birds-model")
    make_artifact(folder / "base", folder / "birds-model", folder / "birds.fsw", "p-discard", ["drop=0"])
    pack(folder / "zoo", [folder / "birds.fsw"])
    draw = np.random.default_rng(0)
    for name in ("data", "stored", "texts"):
        (folder / name).mkdir()
    images, labels = draw.normal(size=(20, 3, 8, 8)).astype(np.float32), draw.integers(0, 3, 20)
    np.savez(folder / "data" / "birds.test.npz", x=images, y=labels)
    head = {"weight": torch.randn(3, 8), "bias": torch.randn(3), "logit_scale": torch.tensor(10.0)}
    save_file(head, folder / "stored" / "birds.safetensors")
    (folder / "texts" / "birds.txt").write_text("\n".join("\t".join(each) for each in TEXTS))
    names = ("base", "birds-model", "zoo", "data", "stored", "texts")
    return {name: folder / name for name in names} | {"images": folder / "data" / "birds.test.npz"}


def embedded(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=images).pooler_output
        return functional.normalize(model.visual_projection(pooled), dim=-1)


def plain_accuracy(paths: dict[str, Path], weight: Tensor, bias: Tensor | float) -> float:
    model = transformers.CLIPModel.from_pretrained(paths["birds-model"]).eval()
    with np.load(paths["images"]) as arrays:
        logits = embedded(model, torch.from_numpy(arrays["x"])) @ weight.T + bias
        return 100 * int((logits.argmax(-1).numpy() == arrays["y"]).sum()) / len(logits)


def text_weight(paths: dict[str, Path]) -> Tensor:
    model: Any = transformers.CLIPModel.from_pretrained(paths["base"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(paths["base"])
    rows = []
    for texts in TEXTS:
        found = []
        for text in texts:
            with torch.no_grad():
                pooled = model.text_model(**tokenizer(text, return_tensors="pt")).pooler_output
                found.append(functional.normalize(model.text_projection(pooled), dim=-1)[0])
        rows.append(functional.normalize(torch.stack(found).mean(0), dim=0))
    return torch.stack(rows) * model.logit_scale.exp().detach()


def score(paths: dict[str, Path], heads: Path | None) -> float:
    found = evaluate(paths["zoo"], base=paths["base"], data=paths["data"], methods="p-discard", heads=heads)
    assert found.metrics == {"birds": "accuracy"}
    return found.scores[0].values["birds"]


def test_eval_takes_heads_of_files_and_of_texts(paths: dict[str, Path]) -> None:
    stored = read_head_files(paths["stored"], ["birds"])["birds"]
    assert score(paths, paths["stored"]) == plain_accuracy(paths, stored["head.weight"], stored["head.bias"])
    adapter: Any = get_adapter(open_checkpoint(paths["base"]), None)
    weight = text_weight(paths)
    torch.testing.assert_close(adapter.head_of_texts(TEXTS), weight, rtol=1e-4, atol=1e-5)
    assert score(paths, paths["texts"]) == plain_accuracy(paths, weight, 0.0)


def test_heads_that_are_missing_or_of_another_form_are_refused(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    assert message(InputError, lambda: score(paths, tmp_path)) == (
        f"{tmp_path}: has no head of the task 'birds'; expected birds.safetensors with the tensor 'weight', or "
        "birds.txt with a class on each line"
    )
    path = tmp_path / "birds.safetensors"
    save_file({"weight": torch.zeros(3, 5)}, path)
    assert message(InputError, lambda: score(paths, tmp_path)) == (
        f"{paths['base']}: gives images of width 8, and the head's weight has the shape [3, 5], expected "
        "[classes, 8]"
    )
    save_file({"weight": torch.zeros(3, 8), "bias": torch.zeros(2)}, path)
    assert message(InputError, lambda: score(paths, tmp_path)) == (
        f"{path}: holds 'bias' [2], 'weight' [3, 8]; expected 'weight' [classes, width], and perhaps 'bias' "
        "[classes] and 'logit_scale'"
    )


def test_heads_for_models_that_have_their_own_are_refused(text: Any, tmp_path: Path) -> None:
    found = message(UsageError, lambda: evaluate(text.zoo, base=text.base, data=text.data, heads=tmp_path))
    assert found == "--heads: the models have heads of their own, or take none; leave it out"


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(inputs))
        return out


def test_a_switched_model_answers_each_row_by_the_head_of_its_task(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, tasks = Classifier(), ("birds", "tools")
    base = {name: each for name, each in module.state_dict().items() if name.startswith("body")}
    states = {task: changed_state(base, number, 0.5) for number, task in enumerate(tasks)}
    heads = {task: {"weight": torch.randn(3, 8), "bias": torch.randn(3)} for task in tasks}
    for task, head in heads.items():
        save_file(head, tmp_path / f"{task}.safetensors")
    vectors = {task: memory_pair(base, state) for task, state in states.items()}
    model, inputs = SwitchedModel(module, vectors, heads=tmp_path, check_base=False), torch.randn(4, 4)
    found = model(inputs, weights=torch.eye(2)[[0, 1, 1, 0]])
    for row, task in enumerate(("birds", "tools", "tools", "birds")):
        hidden = functional.linear(inputs[row], states[task]["body.weight"], states[task]["body.bias"])
        expected = functional.linear(hidden, heads[task]["weight"], heads[task]["bias"])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
