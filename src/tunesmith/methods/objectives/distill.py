"""Distillation (Hinton et al., 2015, arXiv:1503.02531): learn what a teacher finds likely, not only what stands in the answer."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.data.batch import Batch
from tunesmith.models.forward import candidate_logps
from tunesmith.models.load import Loaded

from .base import TAUGHT, TAUGHT_LOGP, Loss, Objective, Teaching

SMALLEST = 1e-7
"""Least probability of the tokens beyond those that a teacher named: about what float32 tells from 0 beside 1."""


class Distill(Objective):
    """Learn from a larger model's view of every token of your answers. For a teacher that does the task well and is too dear to serve.

    The teacher reads the rows once, before the first step; its likeliest tokens are kept, and all others count as one. It needs the same
    tokenizer. Without a teacher the model that training starts from is it, which holds what is learnt near what was known.
    """

    kind: Literal["distill"] = "distill"
    answers: ClassVar[int | None] = 1
    demonstrates: ClassVar[bool] = True
    teacher: str | None = None
    """Who teaches, named as `model` is; null is the model that training starts from."""
    top: int = Field(16, ge=1)
    """How many of the teacher's likeliest tokens are kept for each supervised token; eight bytes of memory for each. Our choice; what they leave out is compared as one event."""
    temperature: float = Field(1.0, gt=0)
    """What the logits of both are divided by where they are compared; above 1 what is less likely counts more. The paper tries 1 to 20; 1 is our choice."""
    weight: float = Field(0.5, ge=0, le=1)
    """How much the teacher counts; the rest is the likelihood of the answer as it stands. Half and half is our choice."""

    @property
    def teaching(self) -> Teaching:
        """Its likeliest tokens, at the temperature."""
        return Teaching(self.teacher, self.top, self.temperature)

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """weight T^2 KL(teacher, model) + (1 - weight) negative log-likelihood, summed over supervised tokens."""
        token_MK = batch.token_columns[TAUGHT].long().to(loaded.device)
        logp_M, logp_MK = candidate_logps(loaded, batch, token_MK, self.temperature)
        divergence = divergence_of(batch.token_columns[TAUGHT_LOGP].to(logp_M.device), logp_MK).sum()
        loss = self.weight * self.temperature**2 * divergence - (1 - self.weight) * logp_M.sum()
        return Loss(loss, {"nll": -logp_M.detach().sum(), "divergence": divergence.detach()})


def divergence_of(teacher_MK: Tensor, model_MK: Tensor) -> Tensor:
    """KL divergence, nats [M], of a model from a teacher, from their log-probabilities of K tokens; all other tokens are one event."""
    named_M = (teacher_MK.exp() * (teacher_MK - model_MK)).sum(1)
    rest_M, own_rest_M = (rest(each) for each in (teacher_MK, model_MK))
    return named_M + rest_M * (rest_M.log() - own_rest_M.log())


def rest(logp_MK: Tensor) -> Tensor:
    """Float32 [M]: the probability of all tokens but the K given."""
    return (-torch.expm1(torch.logsumexp(logp_MK, 1))).clamp(min=SMALLEST)
