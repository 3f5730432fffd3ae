"""Perceptrons of two layers with a head for each task, as torch runs them and in plain numpy, and their examples."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from support.checkpoints import MemoryCheckpoint, State, memory_pair
from support.static_merges import NAMES
from torch import Tensor, nn

from flexswitch.codecs.format.training_file import TrainingFile
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.pairing import EVERYTHING
from flexswitch.merging.exemplar_merges.inputs import MergeInputs
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings
from flexswitch.merging.models.examples import Batch, Examples, Inputs
from flexswitch.merging.static.merge import combined_tensors, model_deltas

Floats = NDArray[np.float64]

INPUTS, HIDDEN, OUTPUTS = 3, 5, 4
SHAPES = {
    "first.bias": (HIDDEN,),
    "first.weight": (HIDDEN, INPUTS),
    "second.bias": (OUTPUTS,),
    "second.weight": (OUTPUTS, HIDDEN),
    "unused.weight": (2, 3),
}


class Perceptron(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.head = nn.Linear(OUTPUTS, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return found


class PerceptronAdapter:
    """Runs perceptrons on arrays; an adapter."""

    neighbours = 5

    def encoder(self) -> nn.Module:
        raise NotImplementedError

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        return Perceptron(extras["head.weight"].shape[0])

    def parameter_name(self, finetuned_name: str) -> str:
        return finetuned_name

    def batch(self, inputs: Inputs) -> Batch:
        return {"x": torch.from_numpy(np.asarray(inputs, np.float32))}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(**batch)
        return found

    def features(self, encoder: nn.Module, batch: Batch, spec: str) -> Tensor:
        raise NotImplementedError


def adapter(base: object) -> PerceptronAdapter:
    """Returns the adapter of any base."""
    return PerceptronAdapter()


@dataclass(frozen=True)
class Perceptrons:
    """A base, fine-tuned states with heads, and inputs and labels of each task."""

    base: State
    states: list[State]
    inputs: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]

    @property
    def names(self) -> list[str]:
        return list(NAMES[: len(self.states)])

    def given(
        self,
        weights: Sequence[float] = (),
        *,
        jobs: int = 1,
        memory: int = 10**9,
        training: TrainingFile | None = None,
        notes: list[str] | None = None,
        on_step: Callable[[int, str], None] = lambda done, state: None,
    ) -> MergeInputs:
        """Returns the inputs of a merge from examples."""
        vectors = {
            name: memory_pair(self.base, state) for name, state in zip(self.names, self.states, strict=True)
        }
        model = model_deltas(MemoryCheckpoint(self.base), vectors, EVERYTHING, jobs, memory, "a merge")
        own = tuple(weights) or (1.0,) * len(vectors)
        model.weights.update(dict.fromkeys(model.names, own))
        examples = {
            name: Examples(inputs, labels.tolist())
            for name, inputs, labels in zip(self.names, self.inputs, self.labels, strict=True)
        }
        adapters = dict.fromkeys(self.names, PerceptronAdapter())
        note = (notes if notes is not None else []).append
        steps = lambda what, total: nullcontext(on_step)  # noqa: E731
        return MergeInputs(model, adapters, examples, own, "cpu", training, steps, note)

    def merged(
        self,
        method: str,
        settings: Mapping[str, Any] | None = None,
        weights: Sequence[float] = (),
        **options: Any,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the merged tensors by name, and the method's report."""
        record = get_method(method, "merge")
        inputs = self.given(weights, **options)
        ways, report = record.load()(inputs, **dict(check_settings(record, settings or {})))
        outputs = combined_tensors(inputs.model, ways, None)
        return {name: output.whole() for name, output in outputs.items()}, report


def write(case: Perceptrons, folder: Path) -> list[str]:
    """Writes base.safetensors, the fine-tuned models and labelled exemplars; returns the models as sources."""
    save_file(case.base, folder / "base.safetensors")
    (folder / "exemplars").mkdir()
    for name, state, inputs, labels in zip(case.names, case.states, case.inputs, case.labels, strict=True):
        save_file(state, folder / f"{name}.safetensors")
        np.savez(folder / "exemplars" / f"{name}.train.npz", x=inputs, y=labels)
    return [f"{name}.safetensors" for name in case.names]


def perceptrons(tasks: int, count: int = 11, kind: str = "normal") -> Perceptrons:
    """Makes a case; kind "zeros": deltas and inputs of zeros among others."""
    generator = np.random.default_rng(tasks)
    base = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    states, inputs, labels = [], [], []
    for task in range(tasks):
        classes = 2 + task % 3
        state = {
            name: each + generator.normal(size=each.shape).astype(np.float32) / 2
            for name, each in base.items()
        }
        x = generator.normal(size=(count + task, INPUTS)).astype(np.float32)
        if kind == "zeros":
            state["first.weight"], x[:, 0] = base["first.weight"], 0.0
        state["head.weight"] = generator.normal(size=(classes, OUTPUTS)).astype(np.float32)
        states.append({name: torch.from_numpy(each) for name, each in state.items()})
        inputs.append(x)
        labels.append(generator.integers(0, classes, len(x)))
    return Perceptrons({name: torch.from_numpy(each) for name, each in base.items()}, states, inputs, labels)


# --- in numpy ---------------------------------------------------------------------------------------------


def doubles(state: State) -> dict[str, Floats]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def forward(weights: Mapping[str, Floats], head: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns the outputs of both layers and the probabilities of the classes."""
    one = np.tanh(x @ weights["first.weight"].T + weights["first.bias"])
    two = np.tanh(one @ weights["second.weight"].T + weights["second.bias"])
    powers = np.exp(two @ head.T)
    return one, two, powers / powers.sum(axis=-1, keepdims=True)


def backward(weights: Mapping[str, Floats], head: Floats, x: Floats, slopes: Floats) -> dict[str, Floats]:
    """Returns the gradients of Σ slopes · logits by weight; x: (example, input), slopes: (example, class)."""
    one, two, _ = forward(weights, head, x)
    second = slopes @ head * (1 - two**2)
    first = second @ weights["second.weight"] * (1 - one**2)
    return {
        "first.bias": first.sum(axis=0),
        "first.weight": first.T @ x,
        "second.bias": second.sum(axis=0),
        "second.weight": second.T @ one,
        "unused.weight": np.zeros(SHAPES["unused.weight"]),
    }
