"""Models of sentence-transformers: their embeddings, and the older layout of their folders."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import message
from support.tiny_models import WIDTH, save_text_base, texts

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
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
