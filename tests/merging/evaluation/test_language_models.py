"""The perplexity of language models' answers, and the exact match of those that they generate."""

import json
import math
import shutil

import pytest
import torch
from support.checkpoints import message
from support.evaluations import index, request, scores_of
from support.tiny_language_models import language_toy
from support.tiny_models import TASKS, Toy

from flexswitch.cli.eval import score_tables
from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.commands.evaluate import evaluate
from flexswitch.merging.commands.results import evaluated
from flexswitch.merging.evaluation import task_models
from flexswitch.merging.evaluation.setup import open_evaluation

POSITIONS = 16
MATCH = [f"{task}=exact-match" for task in TASKS]


@pytest.fixture(scope="module", params=["gpt2", pytest.param("t5", marks=pytest.mark.deep)])
def toy(request, tmp_path_factory):
    toy = language_toy(tmp_path_factory.mktemp("toys") / request.param, request.param)
    index(toy, "layer:1", per_task=9)
    return toy


def loaded(path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(path)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(path).eval()


def parts(toy, record):
    """Returns the tokens of a record's prompt and of its answer, by the tokenizer alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy.base)
    if "text" in record:
        tokens = tokenizer(record["text"])["input_ids"]
        return tokens[:1], tokens[1:]
    if "prompt" not in record:
        question, answer = (message["content"] for message in record["messages"])
        text = f"[CLS] user {question} [SEP] [CLS] assistant"
        return [tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, f"{answer} [SEP]")]
    ends = "t5" in str(toy.base)
    prompt, answer = (tokenizer(record[name])["input_ids"] for name in ("prompt", "completion"))
    return (prompt, answer) if ends else (prompt[:-1], answer[1:])


@torch.no_grad()
def loss_of(model, prompt, answer):
    """Returns the sum of the losses of an answer's tokens."""
    if model.config.is_encoder_decoder:
        found = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer]))
        return float(found.loss) * len(answer), len(answer)
    tokens = torch.tensor([[*prompt, *answer][:POSITIONS]])
    labels = tokens.clone()
    labels[:, : len(prompt)] = -100
    count = tokens.shape[1] - len(prompt)
    return float(model(input_ids=tokens, labels=labels).loss) * count, count


def records_of(toy, task):
    return [json.loads(line) for line in (toy.data / f"{task}.test.jsonl").read_text().splitlines()]


def perplexity(toy, task, path):
    model = loaded(path)
    found = [loss_of(model, *parts(toy, record)) for record in records_of(toy, task)]
    return math.exp(sum(loss for loss, _ in found) / sum(count for _, count in found))


def test_the_perplexity_is_that_of_the_answers_tokens(toy):
    rows = scores_of(toy, ("base", "individual"), finetuned=toy.pairs())
    for task, path in toy.finetuned.items():
        assert rows["base"].values[task] == pytest.approx(perplexity(toy, task, toy.base), rel=1e-4)
        assert rows["individual"].values[task] == pytest.approx(perplexity(toy, task, path), rel=1e-4)


def test_a_stream_under_each_samples_own_task_scores_as_the_tasks_alone(toy):
    rows = scores_of(toy, ("t-switch", "auto-switch"), modes=("oracle", "per-sample"))
    for task in TASKS:
        assert rows["auto-switch (oracle)"].values[task] == pytest.approx(
            rows["t-switch"].values[task], rel=1e-3
        )
    routing = rows["auto-switch (per-sample)"].routing
    assert routing.accuracy > 100 / len(TASKS)


def test_few_logits_are_held_at_once(toy, monkeypatch):
    expected = scores_of(toy, ("t-switch", "auto-switch"), modes=("per-sample",))
    monkeypatch.setattr(task_models, "_MOST_LOGITS", 1)
    assert open_evaluation(request(toy)).task_models.batch_size == 1
    for method, row in scores_of(toy, ("t-switch", "auto-switch"), modes=("per-sample",)).items():
        assert row.values == pytest.approx(expected[method].values, rel=1e-3)


@torch.no_grad()
def greedy(model, prompt, count):
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": 3, "pad_token_id": 0}
    found = model.generate(input_ids=torch.tensor([prompt]), **options)[0]
    return found[1 if model.config.is_encoder_decoder else len(prompt) :]


@pytest.fixture
def answered(toy, tmp_path):
    """The toy with prompts only, two of five of which the fine-tunes do not answer as is expected."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy.base)
    data = shutil.copytree(toy.data, tmp_path / "data")
    for task, path in toy.finetuned.items():
        model, lines = loaded(path), []
        for number, record in enumerate(records_of(toy, task)):
            prompt = " ".join(str(record.get("text", record.get("prompt", "word1"))).split()[: number + 1])
            answer = tokenizer.decode(
                greedy(model, parts(toy, {"prompt": prompt, "completion": ""})[0], 4 + number)
            )
            words = answer.removesuffix("[SEP]").split()
            expected = " ".join(words) if answer.endswith("[SEP]") else "none"
            lines.append(
                json.dumps(
                    {"prompt": prompt, "completion": f" {expected}\n" if number < 3 else "word1 word1"}
                )
            )
        (data / f"{task}.test.jsonl").write_text("\n".join(lines))
    return Toy(toy.base, toy.finetuned, toy.zoo, data)


def expected_matches(toy, task):
    """Returns the share of prompts whose greedy answer, by transformers alone, is the expected one."""
    from transformers import AutoTokenizer

    tokenizer, model, right = AutoTokenizer.from_pretrained(toy.base), loaded(toy.finetuned[task]), 0
    records = records_of(toy, task)
    for record in records:
        tokens = greedy(model, parts(toy, {"prompt": record["prompt"], "completion": ""})[0], 9)
        right += tokenizer.decode(tokens, skip_special_tokens=True).strip() == record["completion"].strip()
    return 100 * right / len(records)


def test_the_exact_match_is_that_of_greedy_answers(answered):
    rows = scores_of(answered, ("individual",), finetuned=answered.pairs(), metrics=MATCH)
    found = rows["individual"].values
    assert found == {task: pytest.approx(expected_matches(answered, task)) for task in TASKS}


def test_a_stream_generates_under_each_samples_own_task(answered):
    rows = scores_of(answered, ("t-switch", "auto-switch"), modes=("oracle",), metrics=MATCH)
    assert rows["auto-switch (oracle)"].values == rows["t-switch"].values


def test_several_units_have_no_average(answered):
    made = evaluate(answered.zoo, base=answered.base, data=answered.data, metric=MATCH[:1])
    document = evaluated(made)
    assert document["metrics"] == {"birds": "exact-match", "cities": "perplexity", "tools": "perplexity"}
    assert [row["average"] for row in document["methods"].values()] == [None, None]
    assert len(score_tables(document)[0].rows) == 2


def test_no_average_is_drawn_of_several_units(answered, tmp_path):
    plot = tmp_path / "scores.png"
    options = {"base": answered.base, "data": answered.data, "metric": MATCH[:1], "plot": plot}
    assert message(UsageError, lambda: evaluate(answered.zoo, **options)) == (
        "--plot: draws averages, and the tasks' metrics have different units; leave it out"
    )


def test_the_shares_of_the_individual_models_count_down_with_the_perplexity(toy):
    methods = ["base", "individual", "t-switch"]
    rows = evaluated(evaluate(toy.zoo, base=toy.base, data=toy.data, finetuned=toy.pairs(), methods=methods))[
        "methods"
    ]
    whole = rows["individual"]
    assert (whole["share_of_individual"], whole["least_share_of_individual"]) == (1, 1)
    for row in rows.values():
        shares = [whole["scores"][task] / row["scores"][task] for task in TASKS]
        assert row["share_of_individual"] == pytest.approx(math.prod(shares) ** (1 / 3))
        assert row["least_share_of_individual"] == pytest.approx(min([*shares, row["share_of_individual"]]))


def test_a_text_without_an_answer_has_no_exact_match(toy, tmp_path):
    data = shutil.copytree(toy.data, tmp_path / "data")
    path = data / "birds.test.jsonl"
    path.write_text('{"prompt": "word1", "completion": "word2"}\n{"text": "word1"}\n')
    assert message(
        InputError, lambda: open_evaluation(request(Toy(toy.base, {}, toy.zoo, data), metrics=MATCH[:1]))
    ) == (
        f"{path}: line 2 has no answer to compare with; expected 'prompt' and 'completion', 'source' and 'target', "
        "or 'messages' that end with an assistant's"
    )
