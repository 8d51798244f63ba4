"""Contrastive preference optimisation (Xu et al., 2024, arXiv:2401.08417): DPO with a uniform reference, and the chosen answers learnt beside it."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from .preference import Answers, Preference


class CPO(Preference):
    """Prefer one answer to another without a reference, held in place by learning the chosen one. For chosen answers that are good, not only better."""

    kind: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0)
    """Scale of the log-probability of a whole answer; 0.1 in the paper."""
    weight: float = Field(1.0, ge=0)
    """How much the likelihood of the chosen answer counts, per token as in the authors' code."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences that are taken to be the wrong way round; none in the paper."""

    def score(self, answers: Answers) -> Tensor:
        """beta times the log-probability of the whole answer."""
        return self.beta * answers.logp_R2

    def cost(self, answers: Answers, margin_R: Tensor) -> Tensor:
        """-log sigmoid of the margin (eq. 3) and the negative log-likelihood of the chosen answer (eq. 5)."""
        right, wrong = -logsigmoid(margin_R), -logsigmoid(-margin_R)
        prefer_R = (1 - self.label_smoothing) * right + self.label_smoothing * wrong
        return prefer_R - self.weight * answers.means[:, 0]
