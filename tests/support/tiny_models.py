"""Tiny untrained models: bases, fine-tunes, a tokenizer, and zoos with their data."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.codecs.format.zoo_writer import LOCK_FILE
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.methods.settings import parse_settings
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.zoos.pack import Form, create_zoo

torch.set_num_threads(1)

WIDTH = 16
MAX_TOKENS = 12
TASKS = {"birds": 2, "cities": 3, "tools": 4}  # task -> number of classes
SHARED_WORDS = [f"word{n}" for n in range(6)]
OWN_WORDS = {task: [f"{task}{n}" for n in range(8)] for task in TASKS}


@dataclass(frozen=True)
class Toy:
    """A base, its fine-tunes by task, a zoo of them, and a folder of train and test files."""

    base: Path
    finetuned: dict[str, Path]
    zoo: Path
    data: Path

    def pairs(self) -> list[str]:
        """Returns the values of `--finetuned`."""
        return [f"{task}={path}" for task, path in self.finetuned.items()]


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder, but the lock of a zoo."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- plain state dicts, without transformers --------------------------------------------------------------


def tiny_state(seed: int = 0) -> dict[str, Tensor]:
    """Returns two matrices and a vector."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.bias": (6,), "layer.weight": (6, 5), "table.weight": (9, 6)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_state(path: Path, state: dict[str, Tensor]) -> Path:
    """Writes a state dict as one safetensors file."""
    save_file(state, path)
    return path


def changed_state(state: dict[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """Returns a fine-tuned state: noise is added to the floating-point tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + size * torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def make_artifact(
    base: Path,
    finetuned: Path,
    path: Path,
    method: str = "t-switch",
    settings: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Artifact:
    """Compresses a fine-tune into an artifact named after the file's stem."""
    selection = Selection(exclude=tuple(exclude))
    vector = open_finetuned(str(finetuned), open_checkpoint(str(base)), selection)
    compress(vector, path, path.stem, method, parse_settings(settings), overwrite=True)
    return open_artifact(path)


def state_artifacts(folder: Path, tasks: Sequence[str], base_seed: int = 0) -> dict[str, Path]:
    """Writes `base.safetensors` and an artifact with an extra for each task; returns the artifacts."""
    folder.mkdir(exist_ok=True)
    state = tiny_state(base_seed)
    base = save_state(folder / "base.safetensors", state)
    artifacts = {}
    for task in tasks:
        seed = sum(task.encode())
        own = {"own.weight": torch.full((2, 6), float(seed))}
        finetuned = save_state(folder / f"{task}.safetensors", changed_state(state, seed) | own)
        artifacts[task] = make_artifact(base, finetuned, folder / f"{task}.fsw").path
    return artifacts


def pack(path: Path, files: Sequence[Path], adapter: str | None = None) -> Zoo:
    """Makes a zoo of artifacts."""
    return create_zoo(path, files, Form(), adapter, False, lambda task: None)[0]


# --- Hugging Face directories -----------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer that splits at spaces, with [CLS] and [SEP] around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *SHARED_WORDS, *(word for own in OWN_WORDS.values() for word in own)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)


def bert_config(**changes: Any) -> Any:
    """Returns the config of a BERT of two layers."""
    from transformers import BertConfig

    settings = {
        "vocab_size": 40,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "initializer_range": 0.4,
    }
    return BertConfig(**(settings | changes))


def vit_config(**changes: Any) -> Any:
    """Returns the config of a ViT of two layers on images of 3 × 8 × 8."""
    from transformers import ViTConfig

    settings = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
        "initializer_range": 0.4,
    }
    return ViTConfig(**(settings | changes))


def save_text_base(folder: Path, seed: int = 0) -> Path:
    """Writes a BERT without a head, and its tokenizer."""
    from transformers import BertModel

    torch.manual_seed(seed)
    BertModel(bert_config()).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def save_text_classifier(base: Path, folder: Path, classes: int, seed: int) -> Path:
    """Writes a fine-tune of a text base with a new classifier."""
    from transformers import BertForSequenceClassification, BertModel

    torch.manual_seed(seed)
    model = BertForSequenceClassification(bert_config(num_labels=classes))
    own = BertModel.from_pretrained(base).state_dict()
    model.bert.load_state_dict(changed_state(own, seed, size=0.3))
    model.save_pretrained(folder)
    return folder


def save_encoder_with_head(base: Path, folder: Path, classes: int, seed: int, bias: bool = True) -> Path:
    """Writes a fine-tune of a text base without a classifier, with a linear head."""
    from transformers import BertModel

    model = BertModel.from_pretrained(base)
    model.load_state_dict(changed_state(model.state_dict(), seed))
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    head = {"head.weight": torch.randn(classes, WIDTH, generator=generator)}
    if bias:
        head["head.bias"] = torch.randn(classes, generator=generator)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_state(folder / "model.safetensors", state | head)
    return folder


def save_image_base(folder: Path, seed: int = 0) -> Path:
    """Writes a ViT without a head, and its preprocessor_config.json."""
    from transformers import ViTModel

    torch.manual_seed(seed)
    ViTModel(vit_config(), add_pooling_layer=False).save_pretrained(folder)
    settings = {"rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_image_classifier(base: Path, folder: Path, classes: int, seed: int) -> Path:
    """Writes a fine-tune of an image base with a new classifier."""
    from transformers import ViTForImageClassification, ViTModel

    torch.manual_seed(seed)
    model = ViTForImageClassification(vit_config(num_labels=classes))
    own = ViTModel.from_pretrained(base, add_pooling_layer=False).state_dict()
    model.vit.load_state_dict(changed_state(own, seed))
    model.save_pretrained(folder)
    return folder


# --- examples, and a whole zoo ----------------------------------------------------------------------------


def texts(task: str, count: int, seed: int) -> list[str]:
    """Returns texts of 3 to 14 words; the longest are cut by the tokenizer, and tasks share some words."""
    generator = np.random.Generator(np.random.PCG64(seed))
    words = OWN_WORDS[task] * 2 + SHARED_WORDS
    return [" ".join(generator.choice(words, generator.integers(3, 15))) for _ in range(count)]


def write_jsonl(path: Path, inputs: Sequence[str], labels: Sequence[int] | None) -> Path:
    """Writes a .jsonl or .jsonl.gz file of examples."""
    records: list[dict[str, Any]] = [{"text": text} for text in inputs]
    for record, label in zip(records, labels if labels is not None else (), strict=labels is not None):
        record["label"] = int(label)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def plain_predictions(folder: Path, tokenizer: Path, inputs: Sequence[str]) -> list[int]:
    """Returns the classes that a saved text classifier predicts, by transformers alone, one text at a time."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    return text_predictions(model, tokenizer, inputs)


def text_predictions(model: nn.Module, tokenizer: Path, inputs: Sequence[str]) -> list[int]:
    """Returns the classes that a text classifier predicts, one text at a time."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(tokenizer)
    model.eval()
    with torch.no_grad():
        batches = [tokenize(text, truncation=True, return_tensors="pt") for text in inputs]
        return [int(model(**batch).logits.argmax()) for batch in batches]


def partly_wrong(answers: Sequence[int], classes: int) -> list[int]:
    """Returns a model's predictions with every fifth replaced by another class."""
    return [(answer + (row % 5 == 0)) % classes for row, answer in enumerate(answers)]


def pack_finetuned(
    folder: Path, base: Path, finetuned: dict[str, Path], method: str, settings: Sequence[str] = ()
) -> Path:
    """Compresses fine-tunes and packs them; returns the zoo."""
    folder.mkdir()
    files = [
        make_artifact(base, checkpoint, folder / f"{task}.fsw", method, settings).path
        for task, checkpoint in finetuned.items()
    ]
    pack(folder / "zoo", files)
    return folder / "zoo"


def text_toy(folder: Path, test_count: int = 30) -> Toy:
    """Makes a T-Switch zoo of three text classifiers; 4 of 5 labels are the fine-tuned model's predictions."""
    base = save_text_base(folder / "base")
    data = folder / "data"
    data.mkdir()
    finetuned = {}
    for number, (task, classes) in enumerate(TASKS.items(), 1):
        finetuned[task] = save_text_classifier(base, folder / f"{task}-model", classes, seed=number)
        write_jsonl(data / f"{task}.train.jsonl.gz", texts(task, 20, seed=number), None)
        inputs = texts(task, test_count, seed=100 + number)
        answers = plain_predictions(finetuned[task], base, inputs)
        write_jsonl(data / f"{task}.test.jsonl", inputs, partly_wrong(answers, classes))
    return Toy(base, finetuned, pack_finetuned(folder / "packed", base, finetuned, "t-switch"), data)


def image_toy(folder: Path) -> Toy:
    """Makes a T-Switch zoo of two image classifiers; the second task's images are brighter."""
    from transformers import ViTForImageClassification

    base = save_image_base(folder / "base")
    data = folder / "data"
    data.mkdir()
    finetuned = {}
    for number, task in enumerate(("dark", "light")):
        finetuned[task] = save_image_classifier(base, folder / f"{task}-model", 3, seed=number)
        generator = np.random.Generator(np.random.PCG64(number))
        pixels = generator.normal(number, 1, (40, 3, 8, 8)).astype(np.float32)
        model = ViTForImageClassification.from_pretrained(finetuned[task]).eval()
        with torch.no_grad():
            answers = model(torch.from_numpy(pixels[:25])).logits.argmax(-1).tolist()
        np.savez(data / f"{task}.train.npz", x=pixels[25:])
        np.savez(data / f"{task}.test.npz", x=pixels[:25], y=partly_wrong(answers, 3))
    return Toy(base, finetuned, pack_finetuned(folder / "packed", base, finetuned, "t-switch"), data)


def encoder_toy(folder: Path) -> Toy:
    """Makes a T-Switch zoo of two encoders with linear heads."""
    base = save_text_base(folder / "base")
    data = folder / "data"
    data.mkdir()
    finetuned = {}
    for number, task in enumerate(("birds", "tools")):
        finetuned[task] = save_encoder_with_head(base, folder / f"{task}-model", 3, seed=number)
        write_jsonl(data / f"{task}.train.jsonl", texts(task, 15, seed=number), None)
        labels = np.random.Generator(np.random.PCG64(number)).integers(0, 3, 25)
        write_jsonl(data / f"{task}.test.jsonl", texts(task, 25, seed=number), labels.tolist())
    return Toy(base, finetuned, pack_finetuned(folder / "packed", base, finetuned, "t-switch"), data)
