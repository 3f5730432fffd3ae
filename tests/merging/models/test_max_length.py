"""`--max-length`: texts are cut at fewer tokens than the model takes, wherever a model reads them."""

import pytest
from support.adapter_bases import IMAGE, save_bases
from support.checkpoints import message
from support.tiny_language_models import language_toy
from support.tiny_models import contents, write_jsonl

from flexswitch.codecs.errors import FlexswitchError, UsageError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.index import index
from flexswitch.merging.commands.route import route
from flexswitch.merging.compression.plan import TrainingInputs
from flexswitch.merging.flex_switch.training_data import DataSettings, open_training_data
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.routing.query_set import read_query_set
from flexswitch.merging.task_vectors.open_vector import open_finetuned

LONG = " ".join(f"word{n}" for n in range(6))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return language_toy(tmp_path_factory.mktemp("toys") / "gpt2")


def test_a_batch_is_cut_at_it_but_not_extended_to_it(toy):
    base = open_checkpoint(str(toy.base))
    found = {length: get_adapter(base, "hf-causal-lm", None, length).batch([LONG]) for length in (3, 8, 100)}
    assert [batch["input_ids"].shape[1] for batch in found.values()] == [3, 8, 8]


def test_a_model_of_images_refuses_it(tmp_path):
    base = open_checkpoint(str(save_bases(tmp_path)["image"]))
    assert message(UsageError, lambda: get_adapter(base, IMAGE, None, 9)) == (
        "--max-length: the adapter reads no texts that could be cut; leave it out"
    )


def test_it_cuts_the_exemplars_of_a_training(toy):
    base = open_checkpoint(str(toy.base))
    inputs = TrainingInputs(base, toy.data, 12, max_length=4)
    settings = DataSettings("tools", inputs, "kl", 0, 1, 0, "float32")
    with parallel_map(1) as each:
        data = open_training_data(open_finetuned(str(toy.finetuned["tools"]), base), settings, each)
    assert {len(answer) for answer in data.exemplars.answers} == {4}


def test_an_index_and_a_route_read_no_more_of_a_text(toy, tmp_path):
    import shutil

    zoos = [shutil.copytree(toy.zoo, tmp_path / name) for name in ("cut", "whole")]
    for zoo, length in zip(zoos, (2, None), strict=True):
        options = {"features": "layer:1", "metric": "euclidean", "normalise": "none"}
        index(zoo, base=toy.base, exemplars=toy.data, per_task=9, max_length=length, **options)
    points = [read_query_set(open_zoo(zoo)).points for zoo in zoos]
    assert points[0].shape == points[1].shape
    assert (points[0] != points[1]).any()
    samples = [
        write_jsonl(tmp_path / f"{n}.jsonl", [f"birds{n} {LONG}", f"birds{n} tools1"], None) for n in range(2)
    ]
    for path in samples:
        result = route(zoos[0], base=toy.base, samples=path, max_length=2).result
        assert result.weights[0].tolist() == result.weights[1].tolist()
        assert float(result.distance[0]) == pytest.approx(float(result.distance[1]), rel=1e-4)


def test_methods_that_do_not_learn_refuse_it(toy, tmp_path):
    with pytest.raises(FlexswitchError, match=r"max.length.*t-switch does not learn from examples"):
        compress(toy.finetuned["birds"], tmp_path / "birds.fsw", base=toy.base, max_length=9)
    assert contents(tmp_path) == {}
