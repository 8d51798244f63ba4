"""What a merging is: what several runs added to the same weights becomes one addition (task arithmetic; Ilharco et al., 2022, arXiv:2212.04089)."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.base import ConfigError, Family


@dataclass(frozen=True)
class Correction:
    """A low-rank addition B A to a weight; the root of its scale is in either factor."""

    down_RI: Tensor
    up_OR: Tensor

    @property
    def delta(self) -> Tensor:
        """What it adds."""
        return self.up_OR @ self.down_RI

    @property
    def rank(self) -> int:
        """Width."""
        return len(self.down_RI)


class Merging(Family):
    """How what K runs added to the same weights of the same base becomes one addition. Low-rank corrections stay such."""

    averages: ClassVar[bool] = False
    """Whether weights of one each keep the size of what is merged; else it takes shares of one."""

    def check(self, ranks: Sequence[int] | None) -> None:
        """Refuse what this cannot merge; `ranks` of low-rank corrections, None where runs changed weights themselves.

        Raises:
            ConfigError: says why, and what to take.
        """

    def combined(self, delta_K: Sequence[Tensor], weights: Sequence[float], generator: torch.Generator) -> Tensor:
        """One addition from those of all runs to a weight, all of one shape; by default their weighted sum."""
        return weighted_sum(delta_K, weights)

    @abstractmethod
    def correction(
        self, corrections: Sequence[Correction], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Correction, Tensor]:
        """One low-rank correction from those of all runs to a weight, and the whole matrix [O, I] that it stands for."""


class Cut(Merging):
    """Merges what corrections add as whole matrices, and keeps of the result as much as a rank can hold."""

    rank: int | None = Field(None, gt=0)
    """Rank of the adapter that is written; the best approximation of this rank is kept, and `kept` in the figures says how much that is. Null adds the ranks of
    the runs up."""

    def check(self, ranks: Sequence[int] | None) -> None:
        """Whole weights have no rank."""
        if ranks is None and self.rank is not None:
            raise ConfigError("merge.method.rank: what these runs learnt is no low-rank correction; leave rank out")

    def correction(
        self, corrections: Sequence[Correction], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Correction, Tensor]:
        """The combined matrix, cut to the rank."""
        whole_OI = self.combined([one.delta for one in corrections], weights, generator)
        return low_rank(whole_OI, self.width([one.rank for one in corrections])), whole_OI

    def width(self, ranks: Sequence[int]) -> int:
        """The rank that is kept."""
        return self.rank or sum(ranks)


class Pruned(Cut):
    """Combines what is left of each addition after pruning."""

    density: float = Field(0.5, gt=0, le=1)
    """Share of the values of each addition that stay; half is our choice."""


def weighted_sum(delta_K: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_k w_k d_k."""
    return torch.stack([weight * delta for weight, delta in zip(weights, delta_K, strict=True)]).sum(0)


def low_rank(whole_OI: Tensor, rank: int) -> Correction:
    """The closest matrix of a rank (Eckart and Young, 1936), its factors of equal size; filled up with zeros where a matrix has no such rank."""
    left_OR, value_R, right_RI = torch.linalg.svd(whole_OI, full_matrices=False)
    root_R = value_R[:rank].sqrt()
    down_RI, up_OR = root_R[:, None] * right_RI[:rank], left_OR[:, :rank] * root_R
    missing = rank - len(root_R)
    if missing > 0:
        down_RI = torch.cat([down_RI, down_RI.new_zeros(missing, down_RI.shape[1])])
        up_OR = torch.cat([up_OR, up_OR.new_zeros(len(up_OR), missing)], 1)
    return Correction(down_RI, up_OR)


def largest(delta: Tensor, density: float) -> Tensor:
    """The values of largest magnitude, the others zero."""
    kept = torch.zeros_like(delta).flatten()
    places = delta.abs().flatten().topk(int(density * delta.numel())).indices
    kept[places] = delta.flatten()[places]
    return kept.view_as(delta)


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A random share of the values, scaled up so that the expectation is what it was (DARE; Yu et al., 2023, arXiv:2311.03099, eq. 2 and 3)."""
    drawn = torch.bernoulli(torch.full(delta.shape, density), generator=generator)
    return delta * drawn.to(delta.device) / density


def agreed(delta_K: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Of each value the weighted mean over the runs that have the sign which prevails in the sum (TIES; Yadav et al., 2023, arXiv:2306.01708, algorithm 1)."""
    stacked_K = torch.stack(list(delta_K))
    prevailing = torch.where(stacked_K.sum(0) >= 0, 1.0, -1.0)
    agrees_K = stacked_K.sign() == prevailing
    total = weighted_sum([delta * mask for delta, mask in zip(stacked_K, agrees_K, strict=True)], weights)
    return total / agrees_K.sum(0).clamp(min=1)
