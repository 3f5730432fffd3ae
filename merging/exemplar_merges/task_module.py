"""A task's model with its own head, whose other weights are changed from outside."""

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.exemplar_merges.inputs import MergeInputs
from flexswitch.merging.models.adapters import kind_of
from flexswitch.merging.models.examples import Batch, Examples
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.models.loading_names import names_inside
from flexswitch.merging.models.scored_tokens import scored_tokens
from flexswitch.merging.models.token_outputs import TokenOutputs, plain_outputs, token_outputs
from flexswitch.merging.task_vectors.raw_tensors import to_torch
from flexswitch.merging.task_vectors.restore import restored_tensors
from flexswitch.merging.task_vectors.task_vector import TaskVector

Gradients = dict[str, Tensor]  # tensor of the base → gradient in its shape, float32

_TOKENIZERS = Lock()  # a tokenizer stores padding in itself, so only one thread may call it at a time


class TaskModule:
    """A task's model with the weights θ + λ·τ and the task's head.

    parameters: tensor of the base that is merged → parameter, for those that the model has.
    """

    def __init__(self, inputs: MergeInputs, task: int, lambda_: float = 1.0) -> None:
        """Loads the model. Raises: InputError where its weights do not fit its config.json."""
        base, vector = inputs.model.base, inputs.model.vectors[task]
        self.task, self._device = inputs.model.tasks[task], inputs.device
        self._adapter, self._source = inputs.adapters[self.task], vector.source
        self._config, self._extras = read_config(base) | vector.model.config, set(vector.extras)
        rename = self._adapter.parameter_name
        module = self._adapter.model(vector.model.config, vector.extras)
        state = _base_state(base, vector) if lambda_ == 0 else _restored_state(base, vector, lambda_)
        load_weights(module, {rename(name): tensor for name, tensor in state.items()}, vector.source)
        self.module = module.to(self._device).eval().requires_grad_(False)
        named = {name: rename(vector.model.finetuned_name(name)) for name in inputs.model.names}
        inside, own = names_inside(module, list(named.values())), module.state_dict(keep_vars=True)
        found = {name: own[inside[inner]] for name, inner in named.items() if inner in inside}
        self.parameters = {name: each for name, each in found.items() if isinstance(each, nn.Parameter)}

    def share(self, weights: Mapping[str, Tensor]) -> None:
        """Makes the parameters use these tensors, whose later changes they follow."""
        for name, parameter in self.parameters.items():
            parameter.data = weights[name]

    def batch(self, examples: Examples, rows: Sequence[int]) -> Batch:
        """Returns the model's input for some examples. Raises: InputError where it is not finite."""
        inputs = examples.take(torch.tensor(rows, dtype=torch.int64).numpy()).inputs
        with _TOKENIZERS:
            batch = self._adapter.batch(inputs)
        if not all(torch.isfinite(value).all() for value in batch.values()):
            place = self._source if examples.origin is None else examples.origin.path
            raise InputError(f"{place}: exemplars of task '{self.task}' hold NaN or infinite numbers")
        return {name: value.to(self._device) for name, value in batch.items()}

    def answers(self, batch: Batch) -> Tensor:
        """Returns the model's logits, of whatever kind, (sample, ...)."""
        return self._adapter.logits(self.module, batch)

    def logits(self, batch: Batch) -> Tensor:
        """Returns the logits in float32, (sample, class).

        Raises: InputError unless they are of classes and finite.
        """
        logits = self.answers(batch)
        kind = kind_of(self._adapter, self._config, self._extras, logits)
        if kind != "classes":
            raise InputError(f"{self._source}: its outputs are {kind}, but this merge needs a classifier")
        return self._checked(logits)

    @property
    def gives_tokens(self) -> bool:
        """Whether its answers are the next tokens of texts."""
        return getattr(self._adapter, "kind", None) == "tokens"

    def outputs(self, batch: Batch) -> tuple[TokenOutputs, Tensor]:
        """Returns its answers, each with logits (answer, column), and each sample's number, (sample,).

        Of a classifier they are one class for each sample, of a language model the scored next tokens.
        Raises: InputError on answers of another kind.
        """
        if not self.gives_tokens:
            logits = self.logits(batch)
            return plain_outputs(logits), torch.ones(len(logits), dtype=torch.int64)
        return token_outputs(self._adapter, self.module, batch), scored_tokens(batch).sum(1)

    def entropies(self, batch: Batch) -> Tensor:
        """Returns the mean entropy of the answers to each sample in nats, (sample,); 0 of no answers."""
        outputs, counts = self.outputs(batch)
        each = outputs.each(lambda logits, chosen: _entropy(self._checked(logits)))
        owners = torch.arange(len(counts), device=each.device).repeat_interleave(counts.to(each.device))
        sums = torch.zeros(len(counts), device=each.device).index_add(0, owners, each)
        return sums / counts.to(each.device).clamp(min=1)

    def log_chance(self, batch: Batch, draws: np.random.Generator) -> Tensor:
        """Returns the sum of log p(y) of answers y that are drawn by their probabilities p, a scalar."""
        outputs, counts = self.outputs(batch)
        uniform = torch.from_numpy(draws.random((int(counts.sum()), 1)))

        def chance(logits: Tensor, chosen: slice) -> Tensor:
            logarithms = self._checked(logits).log_softmax(-1)
            sums = logarithms.detach().to(torch.float64).exp().cumsum(-1)
            drawn = torch.searchsorted(sums / sums[:, -1:], uniform[chosen].to(sums.device), right=True)
            return logarithms.gather(-1, drawn.clamp(max=logits.shape[-1] - 1))[:, 0]

        return outputs.each(chance).sum()

    def _checked(self, logits: Tensor) -> Tensor:
        """Returns logits in float32. Raises: InputError unless they are finite."""
        if not torch.isfinite(logits).all():
            raise InputError(
                f"{self._source}: the answers of task '{self.task}' are not finite numbers; its weights, or "
                "those that are merged, are not, or huge"
            )
        return logits.float()

    def with_gradients(self) -> "TaskModule":
        """Returns itself, with gradients for the merged tensors from now on."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        return self

    def gradients(self, value: Tensor, keep_graph: bool = False) -> Gradients:
        """Returns the gradient of a scalar, without tensors that it does not depend on."""
        if not value.requires_grad:  # of a text without tokens
            return {}
        found = torch.autograd.grad(
            value, list(self.parameters.values()), retain_graph=keep_graph, allow_unused=True
        )
        return {name: each for name, each in zip(self.parameters, found, strict=True) if each is not None}


def _entropy(logits: Tensor) -> Tensor:
    logarithms = logits.log_softmax(-1)
    return -(logarithms.exp() * logarithms).sum(-1)


def _restored_state(base: Checkpoint, vector: TaskVector, lambda_: float) -> dict[str, Tensor]:
    """Returns θ + λ·τ and the task's own tensors, by fine-tuned name."""
    outputs = restored_tensors(base, vector, lambda_, torch.float32)
    return {name: output.whole() for name, output in outputs.items()}


def _base_state(base: Checkpoint, vector: TaskVector) -> dict[str, Tensor]:
    """Returns θ and the task's own tensors, by fine-tuned name, without reading τ."""
    found = {
        vector.model.finetuned_name(name): base.read(name).reshape(info.shape)
        for name, info in base.tensors.items()
    }
    return found | {name: to_torch(vector.extra(name)) for name in vector.extras}
