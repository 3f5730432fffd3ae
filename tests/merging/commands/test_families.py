"""Every command with every family: it works, or is refused in one line that says what works without an adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.checkpoints import message
from support.families import COMMANDS, FAMILIES, PAGE, TASKS, Family, batch_of, page, save_family, works
from support.tiny_models import pack
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.architecture import ADAPTERS
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.evaluate import evaluate
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.index import index
from flexswitch.merging.commands.merge import merge
from flexswitch.merging.switching.switched_model import SwitchedModel

QUICK = ("token classification",)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(each, id=each.name, marks=() if each.name in QUICK else pytest.mark.deep)
        for each in FAMILIES
    ],
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, dict[str, Path]]:
    """A family, and the paths of its base, fine-tunes, examples, artifacts and zoo."""
    family, folder = request.param, tmp_path_factory.mktemp("family")
    paths = save_family(family, folder)
    for task in TASKS:
        compress(paths[task], folder / f"{task}.fsw", base=paths["base"], extras="exact")
        paths[f"{task}.fsw"] = folder / f"{task}.fsw"
    pack(folder / "zoo", [paths[f"{task}.fsw"] for task in TASKS])
    return family, paths | {"zoo": folder / "zoo"}


def settled(family: Family, paths: dict[str, Path], command: str, run: Any) -> Any:
    """Returns what a command returns; where the family has no adapter, checks the refusal instead."""
    if works(family, command):
        return run()
    kind = transformers.AutoConfig.from_pretrained(paths["base"]).model_type
    assert message(InputError, run) == (
        f"{paths['base']}: no adapter runs {kind} models; extract, merge, compress by methods that need no "
        "exemplars, and SwitchedModel with weights work without one; otherwise give --adapter "
        f"({', '.join(ADAPTERS)}, python:package.module:factory)"
    )
    return None


def test_extract_keeps_every_changed_tensor(made: tuple[Family, dict[str, Path]], tmp_path: Path) -> None:
    _, paths = made
    vector = extract(paths["birds"], paths["birds"], tmp_path / "none.tv.safetensors")
    assert not vector.extras
    vector = extract(paths["base"], paths["birds"], tmp_path / "birds.tv.safetensors")
    stored = load_file(paths["birds"] / "model.safetensors")
    before = load_file(paths["base"] / "model.safetensors")
    changed = [
        tensor for name, tensor in stored.items() if not torch.equal(tensor, before.get(name, tensor[:0]))
    ]
    extras = sum(info.entries for info in vector.extras.values())
    assert vector.parameters + extras >= sum(tensor.numel() for tensor in changed)


def test_t_switch_records_the_adapter(made: tuple[Family, dict[str, Path]]) -> None:
    family, paths = made
    assert open_artifact(paths["birds.fsw"]).header.model.adapter == family.adapter


@pytest.mark.deep
def test_flexswitch_learns_from_exemplars(made: tuple[Family, dict[str, Path]], tmp_path: Path) -> None:
    family, paths = made

    def run() -> Any:
        settings = {"steps": 3, "min_exemplars": 8, "batch": 4}
        return compress(
            paths["birds"], tmp_path / "birds.fsw", base=paths["base"], method="flexswitch",
            settings=settings, exemplars=paths["data"], target_size="40%",
        )  # fmt: skip

    artifact = settled(family, paths, "compress flexswitch", run)
    if artifact is not None:
        assert artifact.header.training is not None
        assert artifact.header.tensors


def test_a_merge_is_the_plain_average(made: tuple[Family, dict[str, Path]], tmp_path: Path) -> None:
    family, paths = made
    merge([paths[task] for task in TASKS], tmp_path / "out", base=paths["base"], method="average")
    kind = getattr(transformers, family.base or family.model)
    pooled = {} if family.pooled else {"add_pooling_layer": False}
    model, loading = kind.from_pretrained(tmp_path / "out", output_loading_info=True, **pooled)
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    owns = [getattr(transformers, family.model).from_pretrained(paths[task]) for task in TASKS]
    states = [(own.base_model if family.base else own).state_dict() for own in owns]
    for name, tensor in model.state_dict().items():
        if all(name in state for state in states) and tensor.is_floating_point():
            expected = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)


def test_eval_takes_the_metric_of_the_family(made: tuple[Family, dict[str, Path]], tmp_path: Path) -> None:
    family, paths = made
    heads = _heads(tmp_path) if family.adapter == "hf-clip-vision" else None
    own = {task: paths[task] for task in TASKS} if family.metric in ("cosine", "iou") else {}

    def run() -> Any:
        methods = ("base", "t-switch", *(("individual",) if own else ()))
        return evaluate(
            paths["zoo"], base=paths["base"], data=paths["data"], heads=heads, finetuned=own, methods=methods
        )

    found = settled(family, paths, "eval", run)
    if found is not None:
        assert found.metrics == dict.fromkeys(TASKS, family.metric)
        assert all(abs(value) <= 100.001 for score in found.scores for value in score.values.values())
        if own:
            assert list(found.scores[2].values.values()) == pytest.approx([100, 100], abs=1e-3)
            assert min(found.scores[0].values.values()) < 99


def test_index_stores_features_of_the_base(made: tuple[Family, dict[str, Path]]) -> None:
    family, paths = made

    def run() -> Any:
        return index(paths["zoo"], base=paths["base"], exemplars=paths["data"], per_task=10, overwrite=True)

    found = settled(family, paths, "index", run)
    assert found is None or found.record.per_task == 10


def test_each_row_of_a_switched_model_is_its_own_tasks(
    made: tuple[Family, dict[str, Path]], tmp_path: Path
) -> None:
    family, paths = made
    kind = getattr(transformers, family.model)
    batch = batch_of(family, 4)
    module = kind.from_pretrained(paths["base"], **family.settings).eval()
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = _outputs(SwitchedModel(module, open_zoo(paths["zoo"]))(batch, weights=weights))
    for number, task in enumerate(TASKS):
        merge([paths["zoo"]], tmp_path / task, base=paths["base"], task=task)
        alone = kind.from_pretrained(tmp_path / task).eval()
        with torch.inference_mode():
            expected = _outputs(alone(**batch))
        for name, tensor in expected.items():
            rows = slice(number, None, 2)
            torch.testing.assert_close(found[name][rows], tensor[rows], rtol=1e-3, atol=2e-4)


def test_the_page_of_families_is_what_the_table_says() -> None:
    assert page() == PAGE.read_text(encoding="utf-8")
    assert len(COMMANDS) == 7


def _outputs(output: Any) -> dict[str, Tensor]:
    """Returns a model's outputs that have rows, one at least."""
    names = ("logits", "pred_boxes", "start_logits", "end_logits", "image_embeds", "last_hidden_state")
    found = {name: output[name] for name in names if output.get(name) is not None}
    assert found
    return found


def _heads(folder: Path) -> Path:
    from safetensors.torch import save_file

    for task in TASKS:
        save_file(
            {"weight": torch.randn(3, 8), "logit_scale": torch.tensor(100.0)}, folder / f"{task}.safetensors"
        )
    return folder
