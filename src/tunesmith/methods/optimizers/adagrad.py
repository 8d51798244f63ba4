"""Adagrad (Duchi et al., 2011, JMLR 12): steps shrink with all gradients so far."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer, held


class Adagrad(Optimizer):
    """Each weight's step shrinks with the sum of its squared gradients: rare features keep long steps, and no decay needs to be chosen."""

    kind: Literal["adagrad"] = "adagrad"
    learning_rate: float = Field(1e-2, gt=0)
    """Largest step size, reached after warmup; torch's default."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient of a matrix, times the weight, before its sum of squares is taken; 0 is torch's default."""
    epsilon: float = Field(1e-10, gt=0)
    """Added to the root of the sum; torch's default."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's, in its fused form."""
        return torch.optim.Adagrad(self.groups(parameters), eps=self.epsilon, fused=True)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """A float32 sum."""
        return held(parameters, 1)
