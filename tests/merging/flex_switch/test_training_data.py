"""The training data: the batches, the exemplars that are drawn and held out, the fine-tuned model's answers."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.checkpoints import message
from support.sparse_tensors import LAWS
from support.tiny_language_models import save_language_base, save_language_model
from support.tiny_models import MAX_TOKENS, WIDTH, texts, write_jsonl
from support.training_cases import TrainingCase

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.flex_switch.augmentation import augment
from flexswitch.merging.flex_switch.objective import Goal, Precision
from flexswitch.merging.flex_switch.training_data import (
    DataSettings,
    TrainingData,
    open_training_data,
    read_training_examples,
)
from flexswitch.merging.flex_switch.training_record import quality
from flexswitch.merging.models.examples import batch_rows, draw


def opened(
    case: TrainingCase,
    task: str = "birds",
    goal: Goal = "kl",
    seed: int = 0,
    jobs: int = 1,
    augmentations: int = 0,
    precision: Precision = "float32",
) -> TrainingData:
    settings = DataSettings(task, case.inputs(), goal, seed, 1, augmentations, precision)
    with parallel_map(jobs) as each:
        return open_training_data(case.vector(), settings, each)


@pytest.fixture(scope="module")
def case(case: TrainingCase, tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    """The same models with 70 examples."""
    folder = tmp_path_factory.mktemp("data")
    labels = np.random.default_rng(1).integers(0, 3, 70).tolist()
    write_jsonl(folder / "birds.train.jsonl", texts("birds", 70, 1), labels)
    return replace(case, data=folder)


@pytest.fixture(scope="module")
def data(case: TrainingCase) -> TrainingData:
    return opened(case)


# --- batches ----------------------------------------------------------------------------------------------


@LAWS
@given(size=st.integers(1, 40), count=st.integers(1, 60), seed=st.integers(0, 9))
def test_every_pass_holds_every_exemplar_once(size: int, count: int, seed: int) -> None:
    batches = [batch_rows(step, size, count, seed) for step in range(2 * count)]
    assert {len(batch) for batch in batches} == {min(size, count)}
    rows = [row for batch in batches for row in batch]
    for start in range(0, len(rows) - count + 1, count):
        assert sorted(rows[start : start + count]) == list(range(count))


@LAWS
@given(step=st.integers(0, 10**6), size=st.integers(1, 40), count=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_batch_is_known_from_its_step_alone(step: int, size: int, count: int, seed: int) -> None:
    found = batch_rows(step, size, count, seed)
    assert found == batch_rows(step, size, count, seed)
    assert all(0 <= row < count for row in found)


def test_passes_and_seeds_are_shuffled_differently() -> None:
    first, second, other = batch_rows(0, 50, 50, 0), batch_rows(1, 50, 50, 0), batch_rows(0, 50, 50, 1)
    assert sorted(first) == sorted(second) == sorted(other)
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(50))}) == 4


# --- exemplars --------------------------------------------------------------------------------------------


def test_what_is_trained_on_is_what_an_index_draws_and_the_rest_is_held_out(
    case: TrainingCase, data: TrainingData
) -> None:
    inputs = texts("birds", 70, 1)
    drawn = draw(70, case.per_task, 0, "birds")
    assert data.exemplars.examples.inputs == [inputs[row] for row in drawn]
    assert data.held_out is not None
    held_out = list(data.held_out.examples.inputs)
    assert len(held_out) == case.per_task
    places = [inputs.index(text) for text in held_out]
    assert len(set(inputs)) == 70
    assert set(places).isdisjoint(drawn.tolist())


@pytest.mark.parametrize(("count", "held_out"), [(24, 0), (25, 1), (47, 23), (60, 24)])
def test_as_many_are_held_out_as_are_left_up_to_those_trained_on(
    count: int, held_out: int, case: TrainingCase, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "birds.train.jsonl", texts("birds", count, 1), None)
    found = opened(TrainingCase(case.base, case.finetuned, tmp_path, case.per_task))
    assert len(found.exemplars) == 24
    assert (0 if found.held_out is None else len(found.held_out)) == held_out
    with parallel_map(1) as each:
        record = quality(found, each)
    assert (record.held_out_divergence is None) == (held_out == 0)


def test_what_is_drawn_depends_on_nothing_else_that_is_drawn(case: TrainingCase, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for task in ("cities", "birds", "tools"):
        write_jsonl(tmp_path / "data" / f"{task}.train.jsonl", texts("birds", 70, 1), None)
    other = TrainingCase(case.base, case.finetuned, tmp_path / "data", case.per_task)
    found = {task: opened(other, task) for task in ("tools", "birds")}
    alone = opened(case)
    assert found["birds"].digest == alone.digest
    assert found["birds"].exemplars.examples.inputs == alone.exemplars.examples.inputs
    assert found["tools"].exemplars.examples.inputs != alone.exemplars.examples.inputs
    fewer = opened(TrainingCase(case.base, case.finetuned, case.data, 10))
    assert set(fewer.exemplars.examples.inputs) <= set(alone.exemplars.examples.inputs)
    assert opened(case, seed=1).digest != alone.digest


def test_exemplars_and_held_out_examples_are_drawn_and_too_few_are_refused(case: TrainingCase) -> None:
    settings = DataSettings("birds", case.inputs(), "kl", 0, case.per_task, 0, "float32")
    found, held_out = read_training_examples(settings)
    every = texts("birds", 70, 1)
    rows = draw(70, case.per_task, 0, "birds")
    assert list(found.inputs) == [every[row] for row in rows]
    more = np.setdiff1d(draw(70, 2 * case.per_task, 0, "birds"), rows)
    assert list(held_out.inputs) == [every[row] for row in more]
    assert found.labels is None
    for each in read_training_examples(replace(settings, goal="task")):
        assert each.labels is not None
        assert len(each.labels) == case.per_task
    found_message = message(InputError, lambda: read_training_examples(replace(settings, min_exemplars=25)))
    assert found_message == (
        f"{case.data / 'birds.train.jsonl'}: 24 exemplars, expected 25 or more; give more, or "
        "allow fewer with --set min_exemplars=24, or use none with --set objective=none"
    )


def test_exemplars_are_augmented_and_the_fine_tuned_model_answers_those_too(
    case: TrainingCase, data: TrainingData
) -> None:
    found = opened(case, augmentations=2, seed=0)
    assert found.augmented is not None
    assert found.exemplars.examples.inputs == data.exemplars.examples.inputs
    inputs = list(found.augmented.examples.inputs)
    assert inputs == augment(found.exemplars.examples.inputs, 2 * case.per_task, 0)
    assert (found.augmented.kind, found.digest) == ("classes", data.digest)
    expected = plain_logits(case.finetuned, case.base, inputs, "AutoModelForSequenceClassification")
    torch.testing.assert_close(
        torch.stack(found.augmented.answers), torch.stack(expected), rtol=1e-3, atol=1e-4
    )
    assert len(found.training_set) == 3 * case.per_task
    assert list(found.training_set.examples.inputs) == [*found.exemplars.examples.inputs, *inputs]
    both = [*found.exemplars.answers, *found.augmented.answers]
    assert all(torch.equal(one, two) for one, two in zip(found.training_set.answers, both, strict=True))
    with torch.no_grad():
        last = float(found.losses([3 * case.per_task - 1], 1)[0](found.model))
    alone = torch.stack(
        plain_logits(case.finetuned, case.base, inputs[-1:], "AutoModelForSequenceClassification")
    )
    batch = found.objective.batch(found.augmented.examples, [len(inputs) - 1])
    with torch.no_grad():
        gated = found.objective.outputs(found.model, batch).double().log_softmax(-1)
    teacher = alone.double().log_softmax(-1)
    assert last == pytest.approx(float((teacher.exp() * (teacher - gated)).sum()), rel=1e-3)


@pytest.mark.parametrize(("goal", "augmentations"), [("kl", 0), ("task", 3)])
def test_without_crossings_or_with_labels_only_the_exemplars_are_trained_on(
    goal: Goal, augmentations: int, case: TrainingCase
) -> None:
    found = opened(case, goal=goal, augmentations=augmentations)
    assert found.augmented is None
    assert found.training_set is found.exemplars


@pytest.mark.parametrize("goal", ["kl", "mse", "task"])
def test_the_loss_is_the_mean_over_the_exemplars_without_the_augmented_ones(
    goal: Goal, case: TrainingCase
) -> None:
    found = opened(case, goal=goal, augmentations=2, precision="bfloat16")
    exact = opened(case, goal=goal)
    with parallel_map(2) as each, torch.no_grad():
        value = found.loss(each)
        alone = [float(exact.losses([row], 1)[0](exact.model)) for row in range(case.per_task)]
        assert exact.loss(each) == value
        if goal != "task":
            assert found.divergence(found.exemplars, each)[0] == pytest.approx(value, rel=1e-6)
    assert value == pytest.approx(np.mean(alone), rel=1e-4)


def test_only_a_steps_products_are_of_the_precision_that_is_asked_for(
    case: TrainingCase, data: TrainingData
) -> None:
    found = opened(case, precision="bfloat16")
    for one, two in zip(found.exemplars.answers, data.exemplars.answers, strict=True):
        assert torch.equal(one, two)
    rows = list(range(case.per_task))
    with torch.no_grad():
        coarse, fine = (each.losses(rows, 1)[0](each.model) for each in (found, data))
    assert coarse.dtype == torch.float32
    assert coarse != fine
    assert float(coarse) == pytest.approx(float(fine), rel=0.1)


# --- the model and its answers ----------------------------------------------------------------------------


def plain_logits(folder: Path, tokenizer: Path, inputs: list[str], kind: str) -> list[torch.Tensor]:
    """Returns a saved model's logits by transformers alone, one text at a time."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenize = transformers.AutoTokenizer.from_pretrained(tokenizer)
    with torch.no_grad():
        return [
            model(**tokenize(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")).logits[0]
            for text in inputs
        ]


@pytest.mark.parametrize("jobs", [2, pytest.param(1, marks=pytest.mark.deep)])
def test_the_answers_are_the_fine_tuned_models_and_the_model_is_the_base(
    jobs: int, case: TrainingCase
) -> None:
    found = opened(case, jobs=jobs)
    assert found.exemplars.kind == "classes"
    inputs = list(found.exemplars.examples.inputs)
    expected = plain_logits(case.finetuned, case.base, inputs, "AutoModelForSequenceClassification")
    torch.testing.assert_close(
        torch.stack(found.exemplars.answers), torch.stack(expected), rtol=1e-3, atol=1e-4
    )
    base, own = load_file(case.base / "model.safetensors"), found.model.state_dict()
    assert sorted(found.places) == sorted(base)
    for name, place in found.places.items():
        assert torch.equal(own[place.name], base[name])
    tuned = load_file(case.finetuned / "model.safetensors")
    assert torch.equal(own["classifier.weight"], tuned["classifier.weight"])


def test_the_answers_of_a_language_model_are_those_at_each_texts_own_tokens(tmp_path: Path) -> None:
    base = save_language_base(tmp_path / "base", "gpt2")
    finetuned = save_language_model(base, tmp_path / "model", seed=1)
    inputs = [" ".join(text.split()[:9]) for text in texts("birds", 30, 1)]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "birds.train.jsonl", inputs, None)
    case = TrainingCase(base, finetuned, tmp_path / "data")
    found = opened(case)
    assert found.exemplars.kind == "tokens"
    plain = plain_logits(finetuned, base, list(found.exemplars.examples.inputs), "AutoModelForCausalLM")
    head = found.exemplars.head
    assert head is not None
    for answer, expected in zip(found.exemplars.answers, plain, strict=True):
        assert answer.shape == (len(expected), WIDTH)
        torch.testing.assert_close(head(answer), expected, rtol=2e-3, atol=2e-3)


def test_the_divergence_is_the_kl_and_the_agreement_the_share_of_equal_answers(
    case: TrainingCase, data: TrainingData, tmp_path: Path
) -> None:
    """The base with the task's head, against the fine-tuned model, by transformers alone."""
    from safetensors.torch import load_file

    copytree(case.finetuned, tmp_path / "mixed")
    state = load_file(case.finetuned / "model.safetensors")
    state |= {"bert." + name: tensor for name, tensor in load_file(case.base / "model.safetensors").items()}
    save_file(state, tmp_path / "mixed" / "model.safetensors", {"format": "pt"})
    kind, inputs = "AutoModelForSequenceClassification", list(data.exemplars.examples.inputs)
    gated = torch.stack(plain_logits(tmp_path / "mixed", case.base, inputs, kind)).double().log_softmax(-1)
    teacher = torch.stack(plain_logits(case.finetuned, case.base, inputs, kind)).double().log_softmax(-1)
    expected = float((teacher.exp() * (teacher - gated)).sum(-1).mean())
    with parallel_map(2) as each:
        divergence, agreement = data.divergence(data.exemplars, each)
    assert divergence == pytest.approx(expected, rel=1e-3)
    assert agreement == float((gated.argmax(-1) == teacher.argmax(-1)).double().mean())


@pytest.mark.parametrize("shards", [1, 2, 3, 9])
def test_the_losses_of_parts_add_up_to_the_batchs_mean(shards: int, data: TrainingData) -> None:
    rows = [3, 17, 0, 5, 9, 11, 2]
    losses = data.losses(rows, shards)
    assert len(losses) == {1: 2, 2: 3, 3: 4, 9: 7}[shards]  # of 4, 3, 2 and 1 texts at most
    with torch.no_grad():
        total = sum(float(loss(data.model)) for loss in losses)
        alone = [float(data.losses([row], 1)[0](data.model)) for row in rows]
    assert total == pytest.approx(np.mean(alone), rel=1e-4)


def test_the_digest_is_that_of_the_inputs_and_their_order(case: TrainingCase, tmp_path: Path) -> None:
    inputs = texts("birds", 70, 1)
    digests = []
    for number, changed in enumerate((inputs, [*inputs[:-1], "word0"], inputs[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_jsonl(folder / "birds.train.jsonl", changed, [0] * 70)
        digests.append(opened(TrainingCase(case.base, case.finetuned, folder, per_task=70)).digest)
    assert digests[0] == opened(TrainingCase(case.base, case.finetuned, case.data, per_task=70)).digest
    assert len(set(digests)) == 3
