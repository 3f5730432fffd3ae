"""The choice of an adapter, and the errors of bases that cannot be run."""

import shutil
import sys

import pytest
from support.adapter_bases import CAUSAL, ENCODER, IMAGE, TEXT, TO_TEXT, adapter_of, change_config, save_bases
from support.checkpoints import message

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.merging.checkpoints.architecture import ADAPTERS, detect_adapter
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.models.adapters import get_adapter


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def base(bases, tmp_path):
    """A copy of the text base that a test may change."""
    return shutil.copytree(bases["text"], tmp_path / "base")


# --- choice of adapter -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "extras", "adapter"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, ["classifier.weight"], TEXT),
        ({"architectures": ["ViTForImageClassification"]}, ["classifier.weight"], IMAGE),
        ({"architectures": ["BertForSequenceClassification"]}, ["head.weight"], TEXT),
        ({"architectures": ["BertModel"]}, ["head.bias", "head.weight"], ENCODER),
        ({}, ["head.weight"], ENCODER),
        ({"architectures": ["BertModel"]}, ["head.bias"], None),
        ({"architectures": ["BertModel"], "vocab_size": 40}, [], "hf-sentence-embedding"),
        ({"architectures": ["BertModel"], "vocab_size": 40}, ["classifier.weight"], None),
        ({"architectures": ["ViTModel"]}, [], None),
        ({"architectures": ["BertForTokenClassification"]}, ["classifier.weight"], "hf-token-classification"),
        ({"architectures": ["BertForQuestionAnswering"]}, ["qa_outputs.weight"], "hf-question-answering"),
        ({"architectures": ["YolosForObjectDetection"]}, [], "hf-object-detection"),
        ({"architectures": ["CLIPVisionModel"]}, [], "hf-clip-vision"),
        ({"architectures": ["CLIPModel"], "text_config": {}}, [], "hf-clip-vision"),
        ({"architectures": ["LlamaForCausalLM"]}, [], CAUSAL),
        ({"architectures": ["GPT2LMHeadModel"]}, ["head.weight"], CAUSAL),
        ({"architectures": ["LlamaForCausalLM"]}, ["score.weight"], None),
        ({"architectures": ["LlamaForCausalLM"]}, ["model.classifier.dense.weight"], None),
        ({"architectures": ["LlamaForCausalLM"]}, ["model.rescored.weight"], CAUSAL),
        ({"architectures": ["GPT2Model"]}, [], None),
        ({"architectures": ["T5ForConditionalGeneration"]}, [], TO_TEXT),
        ({"architectures": ["MarianMTModel"]}, [], TO_TEXT),
        ({"architectures": ["WhisperForConditionalGeneration"]}, [], None),
        ({"architectures": ["LlavaForConditionalGeneration"], "text_config": {"vocab_size": 40}}, [], None),
        ({"architectures": ["BertForMaskedLM"]}, [], "hf-masked-lm"),
        ({"architectures": None}, [], None),
        ({"architectures": "BertForSequenceClassification"}, [], None),
        ({"architectures": [None]}, [], None),
        ({}, [], None),
    ],
)
def test_the_adapter_follows_from_the_architecture_or_the_head(config, extras, adapter):
    assert detect_adapter(config, extras) == adapter


def test_an_unknown_adapter_is_refused_with_the_nearest_name(bases):
    assert message(UsageError, lambda: adapter_of("hf-sequence-clasification", bases["text"])) == (
        "no adapter is named 'hf-sequence-clasification'; did you mean 'hf-sequence-classification'? "
        f"(known: {', '.join(ADAPTERS)})"
    )


def test_a_family_without_an_adapter_is_refused_with_what_works_without_one(bases):
    assert message(InputError, lambda: adapter_of(None, bases["image"])) == (
        f"{bases['image']}: no adapter runs vit models; extract, merge, compress by methods that need no "
        "exemplars, and SwitchedModel with weights work without one; otherwise give --adapter "
        f"({', '.join(ADAPTERS)}, python:package.module:factory)"
    )


def test_a_base_whose_adapter_is_not_recorded_has_that_of_its_config(bases):
    assert type(adapter_of(None, bases["text"])).__name__ == "SentenceEmbedding"


FACTORY = """
class Mine:
    neighbours = 3

    def __init__(self, base):
        self.base = base

def make(base):
    return Mine(base)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `own_adapter` that python can import."""
    (tmp_path / "own_adapter.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_adapter", None)


def test_a_python_adapter_is_made_by_the_factory_that_the_user_names(bases, module):
    checkpoint = open_checkpoint(str(bases["text"]))
    adapter = get_adapter(checkpoint, None, "python:own_adapter:make")
    assert (adapter.neighbours, adapter.base) == (3, checkpoint)


def test_code_that_a_zoo_names_is_not_even_imported(bases, module):
    assert message(UsageError, lambda: adapter_of("python:own_adapter:make", bases["text"])) == (
        "the zoo names the code 'python:own_adapter:make' as its adapter; if you trust it, give it as --adapter"
    )
    assert "own_adapter" not in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("python:no_such_module:make", "No module named 'no_such_module'"),
        ("python:own_adapter:made", "module 'own_adapter' has no attribute 'made'"),
        ("python:own_adapter", "module 'own_adapter' has no attribute ''"),
        ("python:", "Empty module name"),
    ],
)
def test_a_missing_factory_is_reported(bases, module, name, reason):
    assert message(UsageError, lambda: adapter_of(None, bases["text"], name)) == (
        f"--adapter {name}: {reason}; expected python:package.module:factory"
    )


# --- bases that cannot be run ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_base_without_a_config_is_refused(base, name):
    (base / "config.json").unlink()
    for source in (base, base / "model.safetensors"):
        assert message(InputError, lambda source=source: adapter_of(name, source)) == (
            f"{source}: has no config.json with a 'model_type'; give a model directory"
        )


def test_a_model_type_that_transformers_does_not_know_is_refused(base):
    import transformers

    change_config(base, model_type="bort")
    assert message(InputError, lambda: adapter_of(TEXT, base)) == (
        f"{base}: transformers {transformers.__version__} has no model type 'bort'; "
        "give --adapter python:package.module:factory"
    )


def test_a_base_of_another_family_is_refused(bases):
    adapter = adapter_of(IMAGE, bases["text"])
    found = message(InputError, lambda: adapter.model({}, {}))
    assert found == (
        f"{bases['text']}: transformers makes no AutoModelForImageClassification of a 'bert'; give another "
        "--adapter"
    )
    found = message(InputError, lambda: adapter_of(TEXT, bases["image"]))
    assert found.startswith(f"{bases['image']}: its tokenizer cannot be loaded (")


@pytest.mark.parametrize("entries", [{"hidden_size": 17}, {"hidden_act": "no such"}])
def test_a_config_that_transformers_rejects_is_refused(base, entries):
    adapter = adapter_of(TEXT, base)
    found = message(InputError, lambda: adapter.model(entries, {}))
    assert found.startswith(
        f"{base}: transformers cannot make an AutoModelForSequenceClassification of its config.json ("
    )


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (
            {"num_hidden_layers": 3},
            "lacks 'encoder.layer.2.attention.self.query.weight', which the model of its config.json has",
        ),
        (
            {"vocab_size": 41},
            "does not fit its config.json (size mismatch for embeddings.word_embeddings.weight: copying a "
            "param with shape torch.Size([40, 16]) from checkpoint, the shape in current model is "
            "torch.Size([41, 16]).)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(base, entries, reason):
    change_config(base, **entries)
    adapter = adapter_of(TEXT, base)
    assert message(InputError, adapter.encoder) == f"{base}: {reason}"


def test_a_base_without_a_tokenizer_is_refused(base):
    for path in base.glob("tokenizer*"):
        path.unlink()
    assert message(InputError, lambda: adapter_of(TEXT, base)) == (
        f"{base}: has no tokenizer; copy the model's tokenizer.json to it"
    )


def test_a_tokenizer_that_does_not_load_is_reported(base):
    (base / "tokenizer.json").write_text("{}")
    found = message(InputError, lambda: adapter_of(TEXT, base))
    assert found.startswith(f"{base / 'tokenizer.json'}: its tokenizer cannot be loaded (")


PANICS = {
    "a prefix longer than a word": (
        "model",
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "##b": 2, "ab": 3, "[UNK]": 4}, "merges": [["a", "b"]],
         "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
    ),
    "a table of characters": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA/////w=="}),
}  # fmt: skip


@pytest.mark.parametrize("situation", PANICS)
def test_a_tokenizer_that_panics_is_reported(base, situation):
    part, value = PANICS[situation]
    change_config(base, "tokenizer.json", **{part: value, "added_tokens": []})
    found = message(InputError, lambda: adapter_of(TEXT, base))
    assert found.startswith(f"{base / 'tokenizer.json'}: its tokenizer cannot be loaded (")


def test_an_interruption_while_texts_are_tokenised_is_passed_on(base, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    adapter = adapter_of(TEXT, base)
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        adapter.batch(["word1"])


def test_a_tokenizer_that_cannot_pad_is_refused(base):
    change_config(base, "tokenizer_config.json", pad_token="left out")
    assert message(InputError, lambda: adapter_of(TEXT, base)) == (
        f"{base}: its tokenizer has no pad_token; set one in its tokenizer_config.json"
    )


def test_code_beside_a_base_is_never_run(base):
    trace = base / "trace"
    (base / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    automatic = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "own.Own")
    change_config(base, auto_map=automatic)
    change_config(
        base, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own"
    )
    adapter = adapter_of(TEXT, base)
    adapter.encoder()
    adapter.model({}, {})
    assert adapter.batch(["word1"])["input_ids"].tolist() == [[2, 5, 3]]
    assert not trace.exists()


def test_running_models_without_transformers_says_what_to_install(bases, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert message(InputError, lambda: adapter_of(TEXT, bases["text"])) == (
        "running models needs transformers; pip install 'flexswitch[eval]'"
    )
