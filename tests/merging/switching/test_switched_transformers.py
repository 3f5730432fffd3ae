"""SwitchedModel around transformers' own models: their outputs, and the names that they save under."""

import torch
from support.checkpoints import memory_pair
from support.tiny_models import TASKS, WIDTH, texts

from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.switching.switched_model import SwitchedModel
from flexswitch.merging.task_vectors.restore import restore


def test_a_transformers_model_answers_with_its_own_kind_of_output(text):
    from transformers import AutoModel, AutoTokenizer
    from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

    module = AutoModel.from_pretrained(text.base).eval()
    module.config.output_hidden_states = True
    zoo = open_zoo(text.zoo)
    model = SwitchedModel(module, zoo)
    assert model.tasks == list(TASKS)
    batch = AutoTokenizer.from_pretrained(text.base)(
        texts("birds", 5, seed=0), padding=True, return_tensors="pt"
    )
    batch = {name: tensor[:, :12] for name, tensor in batch.items()}
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    with torch.no_grad():
        found = model(batch, weights=weights)
    assert type(found) is BaseModelOutputWithPoolingAndCrossAttentions
    assert found.last_hidden_state.shape == (5, batch["input_ids"].shape[1], WIDTH)
    assert [type(each) for each in found.hidden_states] == [torch.Tensor] * 3
    torch.testing.assert_close(found.hidden_states[2], found.last_hidden_state)
    for row in range(5):
        task = list(zoo)[int(weights[row].argmax())]
        restored = restore(str(text.base), zoo[task])
        alone = AutoModel.from_pretrained(text.base).eval()
        state = {name.removeprefix("bert."): tensor for name, tensor in restored.items()}
        alone.load_state_dict({name: state[name] for name in alone.state_dict()})
        with torch.no_grad():
            expected = alone(**{name: tensor[row : row + 1] for name, tensor in batch.items()})
        real = batch["attention_mask"][row] == 1
        torch.testing.assert_close(
            found.last_hidden_state[row, real], expected.last_hidden_state[0, real], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(found.pooler_output[row], expected.pooler_output[0], rtol=1e-4, atol=1e-4)


def test_a_model_that_transformers_saves_under_other_names_is_wrapped_by_them(tmp_path):
    from safetensors.torch import load_file
    from support.tiny_models import save_image_base, save_image_classifier, vit_config
    from transformers import ViTForImageClassification

    base = save_image_base(tmp_path / "base")
    tuned = save_image_classifier(base, tmp_path / "tuned", 3, seed=1)
    saved = load_file(base / "model.safetensors")
    vector = memory_pair(saved, load_file(tuned / "model.safetensors"))
    module = ViTForImageClassification(vit_config(num_labels=3)).eval()
    assert not set(saved) <= {name.removeprefix("vit.") for name in module.state_dict()}
    module.vit.load_state_dict(ViTForImageClassification.from_pretrained(base, num_labels=3).vit.state_dict())
    whole = ViTForImageClassification.from_pretrained(tuned).eval()
    module.classifier.load_state_dict(whole.classifier.state_dict())
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        found = SwitchedModel(module, {"tuned": vector})(images, weights=torch.ones(3, 1)).logits
        torch.testing.assert_close(found, whole(images).logits, rtol=1e-4, atol=1e-4)


def test_the_tensors_of_an_encoder_are_found_inside_a_classifier(text):
    from transformers import BertForSequenceClassification

    zoo = open_zoo(text.zoo)
    module = BertForSequenceClassification.from_pretrained(text.base, num_labels=2).eval()
    model = SwitchedModel(module, {"birds": zoo["birds"]})
    batch = {"input_ids": torch.randint(5, 20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    assert not torch.allclose(model(batch, weights=torch.ones(2, 1)).logits, module(**batch).logits)
