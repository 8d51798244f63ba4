"""REINFORCE (Williams, 1992, Machine Learning 8): answers become likelier by what they earn beyond a fixed baseline."""

from typing import Literal

from torch import Tensor

from .policy import Policy


class Reinforce(Policy):
    """The plainest policy gradient: unbiased and noisy. Worth it as the yardstick of the others, or where rewards are of both signs anyway."""

    kind: Literal["reinforce"] = "reinforce"
    baseline: float = 0.0
    """What an answer has to earn to become likelier; the paper leaves it open, 0 is our choice."""

    def advantages(self, earned_RG: Tensor) -> Tensor:
        """What an answer earned beyond the baseline."""
        return earned_RG - self.baseline
