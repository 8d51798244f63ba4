"""Adam (Kingma and Ba, 2015, arXiv:1412.6980)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer, held


class Adam(Optimizer):
    """Each weight has its own step size, from running moments of its gradient. Where weights decay, AdamW does it better."""

    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(2e-4, gt=0)
    """Largest step size, reached after warmup; 1e-4 to 1e-3 suits LoRA, 1e-5 to 5e-5 full fine-tuning. 2e-4 as in QLoRA (arXiv:2305.14314)."""
    weight_decay: float = Field(0.0, ge=0)
    """Added to the gradient, times the weight, before its moments are taken; 0 is torch's default."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient, as in the paper of Adam (arXiv:1412.6980)."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square; the same paper's."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's, in its fused form."""
        return torch.optim.Adam(self.groups(parameters), betas=self.betas, eps=self.epsilon, fused=True)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Two float32 moments."""
        return held(parameters, 2)
