"""DARE (Yu et al., 2023, arXiv:2311.03099) before a weighted sum: most of what was learnt is dropped at random, the rest scaled up."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .base import Pruned, dropped, weighted_sum


class DareLinear(Pruned):
    """Drops values of each addition at random and scales the others up, then adds up: the same in expectation, with fewer collisions between runs.

    The draws depend on the seed alone."""

    kind: Literal["dare_linear"] = "dare_linear"

    def combined(self, delta_K: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator) -> Tensor:
        """Drop, rescale, add."""
        return weighted_sum([dropped(delta, self.density, generator) for delta in delta_K], weights)
