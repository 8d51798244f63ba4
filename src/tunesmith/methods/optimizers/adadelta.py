"""Adadelta (Zeiler, 2012, arXiv:1212.5701): steps in the units of the weights."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer, held


class Adadelta(Optimizer):
    """Steps as long as recent steps were, by the running squares of both gradient and step; begins slowly."""

    kind: Literal["adadelta"] = "adadelta"
    learning_rate: float = Field(1.0, gt=0)
    """Factor of the step; 1 in the paper."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient of a matrix, times the weight, before its running squares are taken; 0 is torch's default."""
    decay: float = Field(0.9, gt=0, lt=1)
    """Of both running squares; 0.9 is torch's default, 0.95 the paper's."""
    epsilon: float = Field(1e-6, gt=0)
    """Added to both: it is what the first steps are made of. 1e-6 in the paper."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's."""
        return torch.optim.Adadelta(self.groups(parameters), rho=self.decay, eps=self.epsilon)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Two float32 running squares."""
        return held(parameters, 2)
