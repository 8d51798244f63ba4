"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer, held
from .kept import KeptAdamW


class AdamW(Optimizer):
    """The default: each weight has its own step size, from running moments of its gradient."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(2e-4, gt=0)
    """Largest step size, reached after warmup; 1e-4 to 1e-3 suits LoRA, 1e-5 to 5e-5 full fine-tuning. 2e-4 as in QLoRA (arXiv:2305.14314)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient, as in the paper of Adam (arXiv:1412.6980)."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square; the same paper's."""
    offload: bool = False
    """Keep the moments in a file in the cache folder, of which memory holds one weight's at a time, as paged optimizers do; the result is the same.
    Worth it where all weights learn."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's, in its fused form, or one that keeps its moments in a file."""
        groups = self.groups(parameters)
        settings: dict[str, Any] = {"betas": self.betas, "eps": self.epsilon}
        if self.offload:
            return KeptAdamW(groups, eight=False, offload=True, **settings)
        return torch.optim.AdamW(groups, fused=True, **settings)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Two float32 moments; in a file, those of one weight at a time take room that a pass's temporary tensors have left."""
        return 0 if self.offload else held(parameters, 2)
