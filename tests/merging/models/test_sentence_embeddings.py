"""Models of sentence-transformers: their embeddings, and the older layout of their folders."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.checkpoints import message
from support.tiny_models import WIDTH, changed_state, pack, save_text_base, texts

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.evaluate import evaluate
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.models.conversations import Pair
from flexswitch.merging.models.loading import load_weights

MODES = {
    "mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip


def save_older(folder: Path, mode: str) -> Path:
    """Writes a model in the layout of older releases, with its weights in a folder of their own."""
    folder.mkdir()
    save_text_base(folder / "0_Transformer")
    pooling: dict[str, Any] = {each: name == mode for name, each in MODES.items()}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(pooling | {"word_embedding_dimension": WIDTH})
    )
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_the_older_layout_is_refused_with_how_to_save_it_anew(tmp_path: Path) -> None:
    older = save_older(tmp_path / "older", "mean")
    assert message(InputError, lambda: open_checkpoint(older)) == (
        f"{older}: its model lies in the folder 0_Transformer, in an older layout of sentence-transformers; save "
        f"it anew: SentenceTransformer('{older}').save_pretrained('NEW')"
    )


@pytest.mark.deep
@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_was_saved_anew_gives_the_librarys_embeddings(tmp_path: Path, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
        model = library.SentenceTransformer(str(save_older(tmp_path / "older", mode)), device="cpu")
        model.save_pretrained(str(tmp_path / "new"))
    base = open_checkpoint(tmp_path / "new")
    adapter: Any = get_adapter(base, None)
    module = adapter.model({}, {})
    state = {name: base.read(name).view(info.shape) for name, info in base.tensors.items()}
    load_weights(module, state, "new")
    inputs = texts("birds", 5, seed=0)
    with torch.no_grad():
        found = adapter.logits(module, adapter.batch(inputs))
    torch.testing.assert_close(found, torch.from_numpy(model.encode(inputs)), rtol=1e-4, atol=1e-5)


def save_pairs(folder: Path) -> dict[str, Path]:
    """Writes a base, a fine-tune, its zoo, and scored pairs of texts of different lengths."""
    base = save_text_base(folder / "base")
    shutil.copytree(base, folder / "task")
    weights = changed_state(load_file(base / "model.safetensors"), 3, size=0.3)
    save_file(weights, folder / "task" / "model.safetensors", {"format": "pt"})
    compress(folder / "task", folder / "task.fsw", base=base)
    pack(folder / "zoo", [folder / "task.fsw"])
    draw = np.random.default_rng(0)
    records = [
        {"text": one, "text_pair": " ".join(other.split()[: row % 3 + 1]), "label": float(draw.normal())}
        for row, (one, other) in enumerate(zip(texts("birds", 12, 0), texts("tools", 12, 1), strict=True))
    ]
    (folder / "data").mkdir()
    (folder / "data" / "task.test.jsonl").write_text("\n".join(map(json.dumps, records)))
    return {name: folder / name for name in ("base", "task", "zoo", "data")}


def embedded(path: Path, inputs: list[str]) -> NDArray[Any]:
    """Returns the mean of each text's last hidden states, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    with torch.no_grad():
        cut = {"truncation": True, "max_length": 12, "return_tensors": "pt"}
        found = [model(**tokenizer(text, **cut))[0][0].mean(0) for text in inputs]
    return np.stack(found).astype(np.float64)


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    return np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, other, strict=True)])


def test_eval_measures_pairs_by_their_scores_and_texts_by_the_fine_tuned_model(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    paths = save_pairs(tmp_path)
    options: dict[str, Any] = {"base": paths["base"], "data": paths["data"]}
    individual = {"methods": ("base", "individual"), "finetuned": {"task": paths["task"]}}
    lines = [json.loads(line) for line in (paths["data"] / "task.test.jsonl").read_text().splitlines()]
    firsts, seconds = ([line[key] for line in lines] for key in ("text", "text_pair"))
    labels = [line["label"] for line in lines]
    found = evaluate(paths["zoo"], **options, **individual)
    assert found.metrics == {"task": "spearman"}
    for score, name in zip(found.scores, ("base", "task"), strict=True):
        expected = spearmanr(cosines(embedded(paths[name], firsts), embedded(paths[name], seconds)), labels)
        assert score.values["task"] == pytest.approx(100 * expected.statistic, abs=1e-3)
    found = evaluate(paths["zoo"], **options, **individual, metric={"task": "cosine"})
    both = firsts + seconds
    expected = cosines(embedded(paths["base"], both), embedded(paths["task"], both)).mean()
    assert [score.values["task"] for score in found.scores] == pytest.approx([100 * expected, 100], abs=1e-3)
    assert message(InputError, lambda: evaluate(paths["zoo"], **options, metric={"task": "cosine"})) == (
        f"{open_zoo(paths['zoo'])['task'].path}: the cosine is measured against the fine-tuned model; "
        "give --finetuned task=CHECKPOINT, for every task, or examples with text, text_pair and label"
    )


def test_pairs_are_no_exemplars_of_an_embedding(tmp_path: Path) -> None:
    adapter: Any = get_adapter(open_checkpoint(save_text_base(tmp_path / "base")), None)
    assert message(InputError, lambda: adapter.batch([Pair("a", "b")])) == (
        "the examples are pairs of texts, which the model embeds apart: only `eval` takes them; otherwise give "
        "each text as an example of its own"
    )
