"""A weighted sum of the largest values of each addition (PEFT's `magnitude_prune`; the trimming of TIES, Yadav et al., 2023, arXiv:2306.01708)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .base import Pruned, largest, weighted_sum


class MagnitudePrune(Pruned):
    """Adds up the largest values of each addition: less noise of one run falls on what another learnt."""

    kind: Literal["magnitude_prune"] = "magnitude_prune"

    def combined(self, delta_K: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator) -> Tensor:
        """Trim, add."""
        return weighted_sum([largest(delta, self.density) for delta in delta_K], weights)
