"""TIES-merging (Yadav et al., 2023, arXiv:2306.01708): trim, elect a sign, and average those that agree with it."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .base import Pruned, agreed, largest


class Ties(Pruned):
    """Keeps each run's largest values, and of each value the mean over the runs that agree about its sign. Where runs pull weights in opposite directions.

    A weight multiplies its run's values before the mean, as PEFT has it: with 1 for each run the size stays, with 0.5 it is halved. Each matrix is trimmed by
    itself, as PEFT does it; algorithm 1 of the paper trims all that a run changed at once, so that some matrices keep more than others."""

    kind: Literal["ties"] = "ties"
    averages = True
    density: float = Field(0.2, gt=0, le=1)
    """Share of the values of each addition that stay, those of largest magnitude; 0.2 is the paper's."""

    def combined(self, delta_K: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator) -> Tensor:
        """Trim, elect, merge."""
        return agreed([largest(delta, self.density) for delta in delta_K], weights)
