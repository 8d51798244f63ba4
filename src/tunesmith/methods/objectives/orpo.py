"""Odds ratio preference optimisation (Hong et al., 2024, arXiv:2403.07691): learn the chosen answers, and their odds against the rejected ones."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from .preference import Answers, Preference

SMALLEST = 1e-6
"""How far below 0 a mean log-probability is held: at 0 the odds are infinite."""


class ORPO(Preference):
    """Supervised tuning and preferences in one: no reference, no tuning before. The paper studied it from 125M parameters on."""

    kind: Literal["orpo"] = "orpo"
    weight: float = Field(0.1, ge=0)
    """How much the odds count beside the likelihood of the chosen answer (lambda; 0.1 in the paper for Mistral, 0.25 to 1 for smaller models)."""

    def score(self, answers: Answers) -> Tensor:
        """log p / (1 - p), where log p is the log-probability per token."""
        mean_R2 = answers.means.clamp(max=-SMALLEST)
        return mean_R2 - torch.log(-torch.expm1(mean_R2))

    def cost(self, answers: Answers, margin_R: Tensor) -> Tensor:
        """Negative log-likelihood per token of the chosen answer, and -log sigmoid of the log odds ratio, eq. 6; the prompt is not learnt."""
        return -answers.means[:, 0] - self.weight * logsigmoid(margin_R)
