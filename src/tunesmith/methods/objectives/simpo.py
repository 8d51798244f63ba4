"""Simple preference optimisation (Meng et al., 2024, arXiv:2405.14734): answers compared by their mean log-probability, without a reference."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from .preference import Answers, Preference


class SimPO(Preference):
    """Prefer one answer to another, long or short. No reference is computed, so nothing but the learning rate holds the model near its start."""

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0)
    """Scale of the mean log-probability; 2.0 to 2.5 in the paper."""
    gamma: float = Field(1.0, ge=0)
    """Margin that the chosen answer should have; 0.5 to 1.5 in the paper."""

    def score(self, answers: Answers) -> Tensor:
        """beta times the log-probability per token."""
        return self.beta * answers.means

    def cost(self, answers: Answers, margin_R: Tensor) -> Tensor:
        """-log sigmoid of the margin beyond gamma, eq. 6."""
        return -logsigmoid(margin_R - self.gamma)
