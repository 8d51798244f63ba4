"""What policy gradients over whole answers share: an answer is one action, and becomes likelier by what it earned beyond a baseline."""

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.data.batch import Batch
from tunesmith.models.forward import token_logps
from tunesmith.models.load import Loaded

from .base import OLD, START, Loss, Objective, earned


class Policy(Objective):
    """Learn from rewards by trial, whole answers at a time. A member says how much more an answer earned than was to be expected."""

    rollouts: ClassVar[bool] = True
    beta: float = Field(0.0, ge=0)
    """Price of each nat by which an answer is likelier than under the model that training starts from; taken off what it earned. 0, which
    prices nothing, is our choice."""

    @property
    def references(self) -> bool:
        """Where leaving the start has a price."""
        return self.beta > 0

    @abstractmethod
    def advantages(self, earned_RG: Tensor) -> Tensor:
        """Float32 [R, G]: what each of a prompt's G answers earned beyond the baseline."""

    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """-ratio A, summed over answers; the ratio of the answer's probability to that under the policy that sampled it is 1 on its first update."""
        logp_S = batch.per_sequence(token_logps(loaded, batch))
        old_S = logp_S.detach()
        if OLD in batch.token_columns:
            old_S = batch.per_sequence(batch.token_columns[OLD].to(logp_S.device))
        earned_RG, stats = earned(batch).to(logp_S.device), {}
        if self.beta:
            apart_S = old_S - batch.per_sequence(batch.token_columns[START].to(logp_S.device))
            earned_RG = earned_RG - self.beta * apart_S.view_as(earned_RG)
            stats["divergence"] = apart_S.sum()
        ratio_S = torch.exp(logp_S - old_S)
        return Loss(-(ratio_S * self.advantages(earned_RG).flatten()).sum(), stats)

    def count(self, batch: Batch) -> int:
        """Answers."""
        return len(batch.row_S)
