"""Concatenation: low-rank corrections side by side are their exact sum (PEFT's `cat`; task arithmetic, Ilharco et al., 2022, arXiv:2212.04089)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .base import Correction, Merging


class Cat(Merging):
    """The weighted sum of what the runs added, exactly: low-rank corrections stand side by side, so ranks add up. The one to begin with."""

    kind: Literal["cat"] = "cat"

    def correction(
        self, corrections: Sequence[Correction], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Correction, Tensor]:
        """[w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...]."""
        up_OR = torch.cat([weight * one.up_OR for weight, one in zip(weights, corrections, strict=True)], 1)
        found = Correction(torch.cat([one.down_RI for one in corrections]), up_OR)
        return found, found.delta
