"""Neighbourhood components analysis: a metric that brings exemplars of one task close together.

Source: Goldberger et al. 2004; Gao et al. 2026, "Auto-FlexSwitch" (arXiv 2604.28109); docs/methods.md §5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_RATE = 0.02  # times the mean absolute entry of the start


def nca(features: Tensor, task_ids: Tensor, start: Tensor, checkpoints: Sequence[int]) -> list[Tensor]:
    """Returns the metric (rank, width) float64 at each of the `checkpoints`, counted in steps of Adam.

    Each step increases Σ_i log Σ_{j: task j = task i} p_ij with p_ij ∝ exp(-‖L x_i - L x_j‖²), j ≠ i, over
    all exemplars at once. features: (exemplar, width) float64; task_ids: (exemplar,); checkpoints: ascending.
    """
    same = task_ids.unsqueeze(0) == task_ids.unsqueeze(1)  # (exemplar, exemplar)
    metric = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([metric], lr=_RATE * float(start.abs().mean()))
    found, done = [], 0
    for checkpoint in checkpoints:
        for _ in range(checkpoint - done):
            optimiser.zero_grad()
            with torch.enable_grad():
                nca_loss(features @ metric.T, same).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        done = checkpoint
        found.append(metric.detach().clone())
    return found


def nca_loss(points: Tensor, same: Tensor) -> Tensor:
    """Returns the mean of -log Σ p_ij over exemplars that share their task. points: (exemplar, rank)."""
    squares = points.square().sum(1)
    nearness = 2 * points @ points.T - squares.unsqueeze(0) - squares.unsqueeze(1)  # -‖x_i - x_j‖²
    itself = torch.eye(len(points), dtype=torch.bool)
    others = nearness.masked_fill(itself, -torch.inf)
    own = others.masked_fill(~same, -torch.inf)
    paired = (same & ~itself).any(1)
    return (others[paired].logsumexp(1) - own[paired].logsumexp(1)).mean()
