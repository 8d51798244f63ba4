"""Supervised fine-tuning (Ouyang et al., 2022, arXiv:2203.02155, step 1): next-token cross-entropy on the tokens of the answer."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.data.batch import Batch
from tunesmith.data.example import WEIGHT
from tunesmith.models.forward import noisy_embeddings, token_logps
from tunesmith.models.load import Loaded

from .base import Loss, Objective

SMALLEST = 1e-6
"""Least doubt of a token in the focal loss: at 0 a power below 1 has no slope."""


class SFT(Objective):
    """Raise the likelihood of the demonstrated answers. The first thing to try whenever you have examples of good answers.

    Where `prepare.weight` names a field, or `finetune.balance.weight` is set, rows count that much; the loss is still the mean over all tokens alike.
    """

    kind: Literal["sft"] = "sft"
    answers: ClassVar[int | None] = 1
    demonstrates: ClassVar[bool] = True
    weighs: ClassVar[bool] = True
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread over the whole vocabulary (Szegedy et al., 2016, arXiv:1512.00567); 0.1 where labels may be wrong."""
    focus: float = Field(0.0, ge=0)
    """Power of 1 - p that a token's loss is multiplied by, so that what is known already counts less (gamma of the focal loss, Lin et al., 2017,
    arXiv:1708.02002, which takes 2)."""
    noise: float = Field(0.0, ge=0)
    """Size of the uniform noise on embeddings while training, the smaller the longer a row (alpha of NEFTune, Jain et al., 2023, arXiv:2310.05914, which
    takes 5 to 15)."""

    enough: float = Field(0.0, ge=0)
    """Loss of a row, in nats a token in the mean, at which it is known well enough and teaches no more; what is minimised is what rows lose above
    it. 0.05 with adapter `memory`, which learns facts one by one; 0, our choice, is never enough."""

    @model_validator(mode="after")
    def _one_view_of_certainty(self) -> Self:
        if self.focus and self.label_smoothing:
            raise ValueError("focus and label_smoothing contradict each other; keep one")
        if self.enough and (self.focus or self.label_smoothing):
            other = "focus" if self.focus else "label_smoothing"
            raise ValueError(f"enough is a row's loss in nats a token, and {other} changes what the loss is; keep one")
        return self

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """Negative log-likelihood in nats, summed over supervised tokens, with the weights of their rows."""
        with noisy_embeddings(loaded, batch, self.noise):
            logp_M = token_logps(loaded, batch, self.label_smoothing)
        loss_M = -logp_M
        if self.focus:
            loss_M = (-torch.expm1(logp_M)).clamp(min=SMALLEST) ** self.focus * loss_M
        if self.enough:
            count_S = batch.per_sequence(torch.ones_like(logp_M))
            above_S = batch.per_sequence(loss_M.detach()) > self.enough * count_S
            loss_M = (loss_M - self.enough) * above_S[batch.sequence_M.to(loss_M.device)]
        return Loss(
            (loss_M * self._weights(batch).to(loss_M.device)).sum() if WEIGHT in batch.columns else loss_M.sum()
        )

    def _weights(self, batch: Batch) -> Tensor:
        """Float32 [M]."""
        found: Tensor = batch.columns[WEIGHT][batch.row_S[batch.sequence_M]]
        return found
