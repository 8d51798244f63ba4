"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer


class AdamW(Optimizer):
    """The default: each weight has its own step size, from running moments of its gradient."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(2e-4, gt=0)
    """Largest step size, reached after warmup; 1e-4 to 1e-3 suits LoRA, 1e-5 to 5e-5 full fine-tuning."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of a matrix, times the learning rate, taken off at each step; biases and norms never decay."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Two groups: matrices, which decay, and the rest."""
        decayed = [parameter for parameter in parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=True)

    @property
    def bytes_per_parameter(self) -> int:
        """Two float32 moments."""
        return 8
