"""DARE (Yu et al., 2023, arXiv:2311.03099) in the place of TIES' trimming (Yadav et al., 2023, arXiv:2306.01708)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .base import Pruned, agreed, dropped


class DareTies(Pruned):
    """Drops values at random as `dare_linear` does, then averages those that agree about the sign as `ties` does; weights as there."""

    kind: Literal["dare_ties"] = "dare_ties"
    averages = True

    def combined(self, delta_K: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator) -> Tensor:
        """Drop, rescale, elect, merge."""
        return agreed([dropped(delta, self.density, generator) for delta in delta_K], weights)
