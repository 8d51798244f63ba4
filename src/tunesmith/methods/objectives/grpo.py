"""Group relative policy optimisation (Shao et al., 2024, arXiv:2402.03300): answers that earn more than their group's mean become likelier."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.data.batch import Batch
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

from .base import OLD, START, Loss, Objective, earned

SMALLEST = 1e-4
"""Added to a group's standard deviation before dividing by it."""


class GRPO(Objective):
    """Learn from rewards by trial. For tasks where an answer can be graded by a program, and the model already earns something now and then.

    The paper's is `average: answers` with `beta: 0.04`; Dr. GRPO (arXiv:2503.20783) is `average: constant` with `scale: none`. `clip_high: 0.28` with
    `average: tokens` is the clip and the averaging of DAPO (arXiv:2503.14476), whose dynamic sampling and penalty on length are not here.
    """

    kind: Literal["grpo"] = "grpo"
    answers: ClassVar[int | None] = None
    rollouts: ClassVar[bool] = True
    group: ClassVar[int] = 2
    clip_low: float = Field(0.2, gt=0, lt=1)
    """A token's probability ratio to the sampling policy below 1 - clip_low teaches nothing more (0.2 in the paper)."""
    clip_high: float = Field(0.2, gt=0)
    """A token's probability ratio to the sampling policy above 1 + clip_high teaches nothing more (0.2 in the paper, 0.28 in DAPO)."""
    beta: float = Field(0.0, ge=0)
    """Price of the divergence from the model that training starts from, per token; 0.04 in the paper, and 0 in DAPO and Dr. GRPO."""
    scale: Literal["group", "none"] = "group"
    """Whether an advantage is divided by the standard deviation of its group's rewards; without, easy and hard prompts do not count more. With it in the paper."""
    average: Literal["tokens", "answers", "constant"] = "tokens"
    """What a loss is the mean over: all tokens of a step alike (DAPO), answers alike however long (the paper), or answers, each summed and
    divided by `length` (Dr. GRPO)."""
    length: int | None = Field(None, ge=1)
    """The constant of `average: constant`; take rollouts.max_tokens."""

    @model_validator(mode="after")
    def _constant_is_given(self) -> Self:
        if (self.length is None) == (self.average == "constant"):
            raise ValueError("length belongs to average: constant, which needs it; take rollouts.max_tokens")
        return self

    @property
    def references(self) -> bool:
        """Where leaving the start has a price."""
        return self.beta > 0

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """-min(ratio A, clip(ratio) A) + beta KL, eq. 3, summed over tokens with the weights that `average` gives them."""
        logp_M = token_logps(loaded, batch)
        old_M = batch.token_columns[OLD].to(logp_M.device) if OLD in batch.token_columns else logp_M.detach()
        advantage_M = self.advantages(batch)[batch.sequence_M].to(logp_M.device)
        weight_M = self._weights(batch).to(logp_M.device)
        ratio_M = torch.exp(logp_M - old_M)
        clipped_M = ratio_M.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_M = -torch.minimum(ratio_M * advantage_M, clipped_M * advantage_M)
        stats = {"clipped": ((clipped_M * advantage_M) < (ratio_M * advantage_M)).float() @ weight_M}
        if self.beta:
            apart_M = batch.token_columns[START].to(logp_M.device) - logp_M
            divergence_M = torch.exp(apart_M) - apart_M - 1  # eq. 4, an unbiased estimate that is never negative
            loss_M = loss_M + self.beta * divergence_M
            stats["divergence"] = divergence_M @ weight_M
        return Loss(loss_M @ weight_M, {name: value.detach() for name, value in stats.items()})

    def count(self, batch: Batch) -> int:
        """Tokens or answers, as `average` says."""
        return batch.supervised if self.average == "tokens" else len(batch.row_S)

    def advantages(self, batch: Batch) -> Tensor:
        """Float32 [S]: how much more each answer earned than its group's mean."""
        earned_RG = earned(batch)
        above_RG = earned_RG - earned_RG.mean(1, keepdim=True)
        if self.scale == "group":
            above_RG = above_RG / (earned_RG.std(1, keepdim=True) + SMALLEST)
        return above_RG.flatten()

    def _weights(self, batch: Batch) -> Tensor:
        """Float32 [M]: how much each token counts."""
        if self.average == "answers":
            return 1 / torch.bincount(batch.sequence_M, minlength=len(batch.row_S)).float()[batch.sequence_M]
        return torch.full((batch.supervised,), 1.0 if self.length is None else 1 / self.length)
