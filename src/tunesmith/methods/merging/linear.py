"""Low-rank corrections merged factor by factor (PEFT's `linear`); whole weights are added up (Ilharco et al., 2022, arXiv:2212.04089)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tunesmith.base import ConfigError

from .base import Correction, Merging, weighted_sum


class Linear(Merging):
    """Adds up A's and B's, as PEFT's `linear` does: the rank stays, but the result is not the sum of what the runs added.

    Each A also meets the other runs' B's. Take it for parity with adapters that were merged so; `cat` is exact. Where runs changed whole weights it adds these
    up, which is exact."""

    kind: Literal["linear"] = "linear"

    def check(self, ranks: Sequence[int] | None) -> None:
        """Factors of one shape."""
        if ranks is not None and len(set(ranks)) > 1:
            raise ConfigError(
                f"merge.method: linear adds factors of one rank, these runs have {', '.join(map(str, ranks))}; take cat or svd"
            )

    def correction(
        self, corrections: Sequence[Correction], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Correction, Tensor]:
        """(sum_k sqrt|w_k| B_k) (sum_k sign(w_k) sqrt|w_k| A_k)."""
        roots = [math.sqrt(abs(weight)) for weight in weights]
        signed = [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
        found = Correction(
            weighted_sum([one.down_RI for one in corrections], signed),
            weighted_sum([one.up_OR for one in corrections], roots),
        )
        return found, found.delta
