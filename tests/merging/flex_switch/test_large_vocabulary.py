"""A vocabulary of 100,000 words: neither training nor eval holds the logits of many tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_language_models import save_language_model, write_language_tokenizer
from support.tiny_models import WIDTH, make_artifact, pack, texts

WORDS, TOKENS, TEXTS = 100_000, 64, 64
# The logits of 64 texts of 64 words take 1,638 MB; those of the 16 of a step 410 MB, with gradients several times.
MOST_MB = 1000  # of which the compiled code takes about a half

RUN = """
import resource, sys
from pathlib import Path
import faiss, numba, sklearn.metrics, torch
from transformers import GPT2LMHeadModel
from flexswitch.merging.commands.compress import compress
from flexswitch.merging.commands.evaluate import evaluate

folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[2] == "compress":
    settings = {"steps": 1, "augmentations": 0, "scale_refit_steps": 0, "shards": 1, "min_exemplars": 16,
                "densities": "uniform"}
    compress(
        folder / "birds", folder / "trained.fsw", base=folder / "base", exemplars=folder / "data", name="birds",
        method="flexswitch", target_size="200KB", settings=settings, jobs=1, per_task=16,
    )
else:
    evaluate(folder / "zoo", base=folder / "base", data=folder / "data")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    sizes = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": TOKENS}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, bos_token_id=2, eos_token_id=3, **sizes))
    model.save_pretrained(folder / "base")
    write_language_tokenizer(folder / "base")
    save_language_model(folder / "base", folder / "birds", 1)
    (folder / "data").mkdir()
    lines = [json.dumps({"text": " ".join(text.split() * TOKENS)}) for text in texts("birds", TEXTS, 1)]
    for split in ("train", "test"):
        (folder / "data" / f"birds.{split}.jsonl").write_text("\n".join(lines))
    pack(folder / "zoo", [make_artifact(folder / "base", folder / "birds", folder / "birds.fsw").path])
    return folder


@pytest.mark.deep
@pytest.mark.parametrize("command", ["compress", "eval"])
def test_the_logits_of_many_tokens_are_not_in_memory_at_once(folder: Path, command: str) -> None:
    run = [sys.executable, "-c", RUN, str(folder), command]
    found = subprocess.run(
        run, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert int(found.stdout.splitlines()[-1]) < MOST_MB
