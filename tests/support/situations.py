"""Situations of checkpoints that people meet, restored by the commands and compared with what is right.

A situation is a row of a table: what writes a base and a fine-tune, and the outputs that its own library computes
from the fine-tune in float32, or the reason for which it is refused.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from flexswitch.codecs.errors import FlexswitchError
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.extract import extract
from flexswitch.merging.commands.merge import merge

TOKENS = torch.tensor([[2, 5, 9, 3], [2, 7, 3, 1]])


class Checkpoints(NamedTuple):
    """The two checkpoints of a situation, and what a model directory answers, by its own library."""

    base: Path
    finetuned: Path
    answers: Callable[[Path], Tensor]
    options: Mapping[str, Any] = {}

    @property
    def expected(self) -> Tensor:
        """What the fine-tuned checkpoint answers."""
        return self.answers(self.finetuned)


def restored(folder: Path, base: Path, finetuned: Path, method: str = "p-discard", **options: Any) -> Path:
    """Returns the model directory that `compress` and `merge --task` make; without loss unless a method is given."""
    folder.mkdir(exist_ok=True)
    settings = {"drop": 0.0} if method == "p-discard" else {}
    dtype = options.pop("dtype", None)
    compress(finetuned, folder / "task.fsw", base=base, method=method, settings=settings, **options)
    return merge([folder / "task.fsw"], folder / "out", base=base, task="task", dtype=dtype).path


def restored_from_vector(folder: Path, base: Path, finetuned: Path, **options: Any) -> Path:
    """Returns the model directory that `extract` and `merge --task` make."""
    folder.mkdir(exist_ok=True)
    dtype = options.pop("dtype", None)
    extract(base, finetuned, folder / "task.tv.safetensors", **options)
    source = folder / "task.tv.safetensors"
    return merge([source], folder / "exact", base=base, task="task", dtype=dtype).path


def assert_right(folder: Path, case: Checkpoints, tolerance: float = 1e-5) -> Path:
    """Checks the answers of both restored models; returns the directory restored from the artifact."""
    options = dict(case.options)
    expected = case.expected
    exact = case.answers(restored_from_vector(folder, case.base, case.finetuned, **options))
    torch.testing.assert_close(exact, expected, rtol=0, atol=tolerance)
    path = restored(folder, case.base, case.finetuned, **options)
    torch.testing.assert_close(case.answers(path), expected, rtol=0, atol=tolerance)
    return path


def refusal(folder: Path, base: Path, finetuned: Path, **options: Any) -> str:
    """Returns the one-line reason for which a pair is refused, with BASE and TASK for its paths."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(FlexswitchError) as caught:
        compress(finetuned, folder / "task.fsw", base=base, **options)
    message = str(caught.value).replace(str(finetuned), "TASK").replace(str(base), "BASE")
    assert "\n" not in message
    return message


def loaded(path: Path, auto: str = "AutoModel", **options: Any) -> Any:
    """Returns a model that transformers loads in float32; every weight must be in the directory."""
    import transformers

    model, info = getattr(transformers, auto).from_pretrained(
        path, local_files_only=True, output_loading_info=True, dtype=torch.float32, **options
    )
    info["unexpected_keys"] = [name for name in info["unexpected_keys"] if not name.startswith("loss.")]
    assert not any(info.values()), info
    return model.eval()


def text_answers(path: Path, auto: str = "AutoModel") -> Tensor:
    """Returns the logits, or else the last hidden states, of `TOKENS`."""
    with torch.inference_mode():
        found = loaded(path, auto)(TOKENS)
    answer: Tensor = found[0]
    return answer
