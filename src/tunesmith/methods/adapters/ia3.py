"""(IA)^3 (Liu et al., 2022, arXiv:2205.05638): keys, values and the inner activations of feed-forward layers are scaled, element by element."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from tunesmith.kernels.quantised_linear import plain
from tunesmith.models.load import Loaded
from tunesmith.models.memory import refuse_memory

from .injected import Injected, linear_layers


class ScaledLinear(nn.Module):
    """A frozen linear layer whose outputs, or inputs, are multiplied by what learns."""

    def __init__(self, base: nn.Linear, *, inputs: bool) -> None:
        super().__init__()
        self.enabled, self.inputs = True, inputs
        shape = (1, base.in_features) if inputs else (base.out_features, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=base.weight.device))
        base.weight.requires_grad_(False)
        self.base = base
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape; the last axis is the layer's input."""
        if not self.enabled:
            plain: Tensor = self.base(x)
            return plain
        factor = self.ia3_l.flatten()
        found: Tensor = self.base((x * factor).to(x.dtype)) if self.inputs else (self.base(x) * factor).to(x.dtype)
        return found

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer, scaled."""
        base = plain(self.base)
        base.weight = nn.Parameter((base.weight.float() * self.ia3_l).to(base.weight.dtype), requires_grad=False)
        if base.bias is not None and not self.inputs:
            base.bias.copy_(base.bias.float() * self.ia3_l.flatten())
        return base


class IA3(Injected):
    """The smallest adapter: three vectors a layer. For few rows, many tasks, and a learning rate ten times LoRA's."""

    kind: Literal["ia3"] = "ia3"
    LAYER: ClassVar[type[ScaledLinear]] = ScaledLinear
    outputs: tuple[str, ...] = ("k_proj", "v_proj")
    """Last names of the linear layers whose outputs are scaled; keys and values in the paper."""
    inputs: tuple[str, ...] = ("down_proj",)
    """Last names of the linear layers whose inputs are scaled; the inner activations in the paper."""

    @model_validator(mode="after")
    def _one_side_each(self) -> Self:
        if both := set(self.outputs) & set(self.inputs):
            raise ValueError(f"{sorted(both)}: a layer's inputs or its outputs are scaled, not both")
        return self

    def attach(self, loaded: Loaded, seed: int) -> None:
        """Freeze the base and multiply by one; there is nothing to draw."""
        refuse_memory(loaded.name, loaded.model)
        loaded.model.requires_grad_(False)
        found = [
            (place, field == "inputs")
            for field in ("outputs", "inputs")
            for place in linear_layers(loaded.model, getattr(self, field), f"adapter.{field}")
        ]
        for (parent, name, layer), inputs in found:
            setattr(parent, name, ScaledLinear(layer, inputs=inputs))

    def tensors(self, layer: ScaledLinear) -> Mapping[str, Tensor]:
        """What is kept of a layer, by peft's names."""
        return {"ia3_l": layer.ia3_l}

    def peft_config(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """peft's configuration."""
        return {
            "peft_type": "IA3",
            "target_modules": list(names),
            "feedforward_modules": [name for name, layer in names.items() if layer.inputs],
            "fan_in_fan_out": False,
        }
