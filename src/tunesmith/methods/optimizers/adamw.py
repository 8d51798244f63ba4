"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tunesmith.base import ConfigError
from tunesmith.kernels.mapped import MappedFile
from tunesmith.models.gguf import cache_folder

from .base import Optimizer, held

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch calls the running mean and the running square."""


class AdamW(Optimizer):
    """The default: each weight has its own step size, from running moments of its gradient."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(2e-4, gt=0)
    """Largest step size, reached after warmup; 1e-4 to 1e-3 suits LoRA, 1e-5 to 5e-5 full fine-tuning."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square."""
    offload: bool = False
    """Keep the moments in a file in the cache folder, of which memory holds one weight's at a time; the result is the same. Worth it where all weights learn."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """torch's, in its fused form, or one that keeps its moments in a file."""
        groups = self.groups(parameters)
        settings: dict[str, Any] = {"betas": self.betas, "eps": self.epsilon}
        if self.offload:
            return OffloadedAdamW(groups, **settings)
        return torch.optim.AdamW(groups, fused=True, **settings)

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Two float32 moments; in a file, those of one weight at a time take room that a pass's temporary tensors have left."""
        return 0 if self.offload else held(parameters, 2)


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose moments lie in a mapped file: each weight's are read, moved and let go before the next one's."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if any(parameter.device.type != "cpu" for parameter in parameters):
            raise ConfigError("optimizer.offload: the weights are not in main memory; set it to false")
        self.file = MappedFile(2 * sum(MappedFile.room(parameter) for parameter in parameters), cache_folder())
        for parameter in parameters:
            moments = {name: self.file.take(parameter) for name in MOMENTS}
            self.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of every weight that has a gradient, in turn; the closure computes the loss and the gradients first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        adamw(
            [parameter], [gradient], [state[MOMENTS[0]]], [state[MOMENTS[1]]], [], [state["step"]], fused=True,
            amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"],
            eps=group["eps"], maximize=False,
        )  # fmt: skip
        self.file.release(*(state[name] for name in MOMENTS))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read the moments into the file."""
        before = {parameter: state for parameter, state in self.state.items()}
        super().load_state_dict(state_dict)
        for parameter, state in before.items():
            for name in MOMENTS:
                state[name].copy_(self.state[parameter][name])
                self.file.release(state[name])
            self.state[parameter] = {"step": self.state[parameter]["step"], **{name: state[name] for name in MOMENTS}}
