"""The logits of a language model, computed a few tokens at a time.

A text of 500 tokens has 200 MB of logits over 100,000 words; their softmax and gradients take as much again.
So what the model's head takes is held instead, and its logits are computed and scored a chunk of tokens at a
time, in a training step once more for the gradient.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flexswitch.merging.models.adapters import Adapter
from flexswitch.merging.models.examples import Batch
from flexswitch.merging.models.outputs import mean_of_texts
from flexswitch.merging.models.scored_tokens import next_tokens, scored_tokens

_CHUNK = 1 << 22  # logits

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TokenOutputs:
    """What a model's head takes for the scored tokens of a batch.

    states: (token, width), text by text; head: returns (token, vocabulary) for some of them.
    """

    states: Tensor
    head: Head

    def __len__(self) -> int:
        return len(self.states)

    def each(self, score: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """Returns `score` of all tokens, (token,).

        score: takes the logits (token, vocabulary) of some tokens and their range, and returns (token,).
        """
        if not len(self):
            return self.states.new_zeros(0)
        size = max(1, _CHUNK // self._vocabulary())
        ranges = [slice(start, start + size) for start in range(0, len(self), size)]

        def scored(chosen: slice) -> Tensor:
            return score(self.head(self.states[chosen]), chosen)

        if len(ranges) == 1 or not torch.is_grad_enabled():
            return torch.cat([scored(chosen) for chosen in ranges])
        return torch.cat([checkpoint(scored, chosen, use_reentrant=False) for chosen in ranges])

    def _vocabulary(self) -> int:
        with torch.no_grad():
            return int(self.head(self.states[:1]).shape[-1])


def plain_outputs(logits: Tensor) -> TokenOutputs:
    """Returns the outputs of logits (answer, column) that are there already."""
    return TokenOutputs(logits, _same)


def token_outputs(adapter: Adapter, model: nn.Module, batch: Batch) -> TokenOutputs:
    """Returns a model's outputs for the tokens of a batch that are scored.

    A head that is followed by more than itself, such as a limit of the logits, counts as a part of the model:
    its logits are then held for the whole batch.
    """
    chosen = scored_tokens(batch)
    caught = _caught_head(model)
    if caught is not None:
        inner, head = caught
        first = adapter.logits(inner, batch)
        if torch.equal(first, head.logits):
            return TokenOutputs(head.states[chosen], head.module)
    return plain_outputs(adapter.logits(model, batch)[chosen])


def token_divergence(expected: TokenOutputs, found: TokenOutputs, batch: Batch) -> Tensor:
    """Returns the mean over texts of their scored tokens' mean KL divergence in nats, a float32 scalar.

    Only `found` gets a gradient.
    """

    def divergence(logits: Tensor, chosen: slice) -> Tensor:
        with torch.no_grad():
            aim = expected.head(expected.states[chosen]).float().log_softmax(-1)
        return (aim.exp() * (aim - logits.float().log_softmax(-1))).sum(-1)

    return mean_of_texts(found.each(divergence), scored_tokens(batch))


def next_token_loss(found: TokenOutputs, batch: Batch) -> Tensor:
    """Returns the mean over texts of their scored tokens' mean cross entropy in nats, a float32 scalar.

    It is 0 for a text without tokens to predict.
    """
    following, follows = next_tokens(batch)
    marks = scored_tokens(batch)
    marks[marks.clone()] = follows
    return mean_of_texts(token_losses(found, following)[follows], marks)


def token_losses(found: TokenOutputs, following: Tensor) -> Tensor:
    """Returns the cross entropy of each scored token's next one in nats, (token,) float32."""
    return found.each(
        lambda logits, chosen: functional.cross_entropy(logits.float(), following[chosen], reduction="none")
    )


def token_agreement(expected: TokenOutputs, found: TokenOutputs) -> tuple[int, int]:
    """Returns the number of tokens after which the same one is likeliest, and the number of tokens."""
    likeliest = found.each(lambda logits, chosen: logits.argmax(-1))
    wanted = expected.each(lambda logits, chosen: logits.argmax(-1))
    return int((likeliest == wanted).sum()), len(found)


class _CaughtHead(nn.Module):
    """Keeps what a head takes, and computes the logits of the first token of each sample only."""

    states: Tensor
    logits: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        """Returns what a model asks of its head, such as the weights' dtype."""
        own = super().__getattr__
        return own(name) if name in ("module", "states", "logits") else getattr(own("module"), name)

    def forward(self, states: Tensor) -> Tensor:
        self.states = states
        self.logits = self.module(states[:, :1])
        return self.logits


def _caught_head(model: Any) -> tuple[Any, _CaughtHead] | None:
    """Returns a copy of a model that shares its tensors, and its head, which is caught in that copy.

    None for a model that names no head, or not as one of its own modules.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    name = next((name for name, each in model.named_children() if each is output), None)
    if output is None or name is None:
        return None
    inner, head = copy(model), _CaughtHead(output)
    inner._modules = {**model._modules, name: head}
    return inner, head


def _same(states: Tensor) -> Tensor:
    return states
