"""RMSprop (Tieleman and Hinton, 2012, lecture 6.5): steps divided by the running root mean square of the gradient."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer, held


class RMSprop(Optimizer):
    """Adam without the running mean, at half its memory. What DPO's authors trained with."""

    kind: Literal["rmsprop"] = "rmsprop"
    learning_rate: float = Field(2e-4, gt=0)
    """Largest step size, reached after warmup; AdamW's here is our choice."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient of a matrix, times the weight, before its running square is taken; 0 is torch's default."""
    decay: float = Field(0.99, gt=0, lt=1)
    """Of the running square; torch's default, 0.9 in Hinton's lecture."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to its root; torch's default."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the step before that is taken again; 0, torch's default, keeps nothing."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's."""
        return torch.optim.RMSprop(self.groups(parameters), alpha=self.decay, eps=self.epsilon, momentum=self.momentum)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """A float32 running square, and a momentum, if there is one."""
        return held(parameters, 2 if self.momentum else 1)
