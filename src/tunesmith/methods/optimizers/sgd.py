"""Stochastic gradient descent (Robbins and Monro, 1951), with momentum if wanted."""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from .base import Optimizer, held


class SGD(Optimizer):
    """One step size for all weights, along the gradient. It needs no memory, and a larger and more carefully chosen learning rate than the others."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(1e-2, gt=0)
    """Largest step size, reached after warmup; 1e-3 to 1 suits LoRA. Our choice."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient, times the weight, before momentum: with momentum 0.9 it comes to ten times as much in the end. 0 is torch's default."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the step before that is taken again; 0, torch's default, keeps nothing."""
    nesterov: bool = False
    """Whether the gradient counts as if that share had been taken already (Nesterov, 1983)."""

    @model_validator(mode="after")
    def _has_what_it_looks_ahead_by(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum; set momentum, for example to 0.9")
        return self

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's, in its fused form."""
        return torch.optim.SGD(self.groups(parameters), momentum=self.momentum, nesterov=self.nesterov, fused=True)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """A float32 momentum, if there is one."""
        return held(parameters, 1) if self.momentum else 0
