"""Lion (Chen et al., 2023, arXiv:2302.06675): the sign of a momentum."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from .base import Optimizer, held


class Lion(Optimizer):
    """Every weight moves by the same amount, one way or the other, at half of Adam's memory. Take a third to a tenth of its learning rate."""

    kind: Literal["lion"] = "lion"
    learning_rate: float = Field(5e-5, gt=0)
    """Step of every weight, reached after warmup; a quarter of AdamW's here, as the paper has a third to a tenth."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Share of the momentum in the step's direction, and its own decay; the paper's."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Ours: torch has none."""
        return TorchLion(self.groups(parameters), {"lr": self.learning_rate, "betas": self.betas})

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """A float32 momentum."""
        return held(parameters, 1)


class TorchLion(torch.optim.Optimizer):
    """Algorithm 2 of the paper."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of every weight that has a gradient; the closure computes the loss and the gradients first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                direction = momentum.lerp(parameter.grad, 1 - first).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)
        return loss
