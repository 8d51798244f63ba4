"""Identity preference optimisation (Azar et al., 2023, arXiv:2310.12036): a margin to reach and not to pass."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from .preference import Answers, Preference


class IPO(Preference):
    """Prefer one answer to another by a fixed margin. Where preferences are sure and few, DPO drives the margin ever further; this one stops."""

    kind: Literal["ipo"] = "ipo"
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the model that training starts from (tau in the paper); the margin aimed at is 1 / (2 beta) nats. The paper names no best one; 0.1 is DPO's."""

    @property
    def references(self) -> bool:
        """Its gains are measured from where training starts."""
        return True

    def score(self, answers: Answers) -> Tensor:
        """log p / p_start of the whole answer."""
        return answers.gains

    def cost(self, answers: Answers, margin_R: Tensor) -> Tensor:
        """Squared distance from the margin aimed at, eq. 17."""
        return (margin_R - 1 / (2 * self.beta)).square()
