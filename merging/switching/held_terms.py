"""By which held weights layers multiply under each mixture of a batch: its own, or each of its tasks'."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.merging.switching.activations import Ids
from flexswitch.merging.switching.mixtures import Factors, Weights, parts_of

Terms = Sequence[tuple[int, float]]  # (number of held weights, -1 for the base's; share of their product)


class Run(NamedTuple):
    """Neighbouring tokens or rows of one number, and where they start and stop."""

    number: int
    start: int
    stop: int


class Sums(NamedTuple):
    """How the products of tokens that have several, by the weights of a task each, are added up.

    first: runs of such tokens and each one's share of its first product, (token, 1); tokens: (product,), the
    token of every other product, and shares, (product, 1), its share; runs: those of the same weights.
    """

    first: list[tuple[slice, Tensor]]
    tokens: Tensor
    shares: Tensor
    runs: list[Run]


@dataclass(frozen=True, eq=False)
class HeldTerms:
    """held: whole weights by number; of_mixture: the terms of each mixture, none where it is not held."""

    held: Sequence[Weights]
    of_mixture: Sequence[Terms]

    def weights(self, number: int) -> Weights:
        """Returns held weights by their number, none of its own for the base."""
        return self.held[number] if number >= 0 else {}

    def own(self, mixture: int) -> Weights | None:
        """Returns a mixture's own weights, None where they are not held."""
        terms = self.of_mixture[mixture]
        return self.weights(terms[0][0]) if len(terms) == 1 else None

    @cached_property
    def is_held(self) -> NDArray[np.bool_]:
        """Whether layers multiply by held weights under each mixture, (mixture,)."""
        return np.array([bool(terms) for terms in self.of_mixture], np.bool_)

    @cached_property
    def has_several(self) -> NDArray[np.bool_]:
        """Whether products are added up under each mixture, (mixture,)."""
        return np.array([len(terms) > 1 for terms in self.of_mixture], np.bool_)

    @cached_property
    def first(self) -> Ids:
        """The number of the weights of each mixture's first product, -1 for the base's, (mixture,)."""
        return np.array([terms[0][0] if terms else -1 for terms in self.of_mixture], np.int64)

    @cached_property
    def place(self) -> Ids:
        """The place of each mixture, (mixture,), in an order that has those of equal first weights together.

        Those that are not held come first, as they share the product with the base.
        """
        order = np.lexsort((self.has_several, self.first))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return place

    def sums(self, mixtures: Ids) -> Sums | None:
        """Returns how products are added up for tokens of these mixtures, (token,), None where none are."""
        several = self.has_several[mixtures]
        if not several.any():
            return None
        first = np.array([terms[0][1] if terms else 1.0 for terms in self.of_mixture], np.float32)
        shares = torch.from_numpy(first[mixtures])[:, None]
        where = [slice(run.start, run.stop) for run in runs_of(several.astype(np.int64)) if run.number]
        others = sorted(self._others(mixtures), key=lambda other: other[0])
        numbers = np.concatenate([np.full(len(tokens), number) for number, tokens, _ in others])
        factors = [np.full(len(tokens), share, np.float32) for _, tokens, share in others]
        return Sums(
            [(tokens, shares[tokens]) for tokens in where],
            torch.from_numpy(np.concatenate([tokens for _, tokens, _ in others])),
            torch.from_numpy(np.concatenate(factors))[:, None],
            runs_of(numbers),
        )

    def _others(self, mixtures: Ids) -> Iterator[tuple[int, Ids, float]]:
        """Yields each mixture's further terms: the number of the weights, its tokens and the share."""
        for mixture, terms in enumerate(self.of_mixture):
            for number, share in terms[1:]:
                yield number, np.flatnonzero(mixtures == mixture), share


def nothing_held(mixtures: int) -> HeldTerms:
    """Returns the terms of so many mixtures where no weights are held."""
    return HeldTerms((), [()] * mixtures)


def held_terms(
    mixtures: Sequence[Factors], held: Mapping[Factors, Weights], scale: float, summed: Collection[int]
) -> HeldTerms:
    """Returns the terms of mixtures where some have weights.

    scale: λ; summed: those that may take a product with the weights of each of their tasks instead of theirs.
    """
    numbers: dict[Factors, int] = {}
    found: list[Terms] = []
    for mixture, own in enumerate(mixtures):
        parts = [(own, 1.0)] if own in held else parts_of(own, scale) if mixture in summed else []
        known = all(part in held or not part for part, _ in parts)
        found.append(
            [
                (numbers.setdefault(part, len(numbers)) if part in held else -1, share)
                for part, share in parts
                if known
            ]
        )
    return HeldTerms([held[part] for part in numbers], found)


def runs_of(numbers: Ids) -> list[Run]:
    """Returns the runs of equal numbers, which are -1 or more."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-2))
    stops = np.append(starts[1:], len(numbers)) if len(starts) else starts
    return [Run(*run) for run in zip(numbers[starts].tolist(), starts.tolist(), stops.tolist(), strict=True)]
