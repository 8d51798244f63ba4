"""REINFORCE leave-one-out (Ahmadian et al., 2024, arXiv:2402.14740): the other answers to a prompt say what was to be expected."""

from typing import ClassVar, Literal

from torch import Tensor

from .policy import Policy


class RLOO(Policy):
    """GRPO's forerunner without clipping: unbiased, and simpler. A group in which all earned the same teaches nothing."""

    kind: Literal["rloo"] = "rloo"
    group: ClassVar[int] = 2

    def advantages(self, earned_RG: Tensor) -> Tensor:
        """What an answer earned beyond the mean of the others, sec. 2.2."""
        others_RG = (earned_RG.sum(1, keepdim=True) - earned_RG) / (earned_RG.shape[1] - 1)
        return earned_RG - others_RG
