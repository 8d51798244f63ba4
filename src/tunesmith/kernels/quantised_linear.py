"""A frozen linear layer whose weight is kept in few bits: what such layers share, and their product with plain numbers made for that one product."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Quantised(ABC):
    """A weight W [O, I] in few bits."""

    @abstractmethod
    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """W [O, I] as plain numbers."""

    def joined(self, tail_OR: Tensor) -> Tensor:
        """[W | tail] [O, I + R], in the tail's dtype."""
        return torch.cat([self.dequantised(tail_OR.dtype), tail_OR], 1)


class QuantisedLinear(nn.Linear):
    """x W^T + b with W in few bits, never to learn; a member keeps its bits in `weight`, whose shape may be any, and in buffers."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)

    @property
    @abstractmethod
    def held(self) -> Quantised:
        """Its weight."""

    def plain(self) -> nn.Linear:
        """The layer with its weight as plain numbers."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.held.dequantised(self.dtype), requires_grad=False)
        layer.bias = self.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape; the last axis is the layer's input."""
        return product(x, self.held, self.bias)


def product(x: Tensor, weight: Tensor | Quantised, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b; W in few bits does not learn."""
    if isinstance(weight, Tensor):
        return linear(x, weight.to(x.dtype), bias_O)
    out: Tensor = _Product.apply(x, weight, bias_O)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """x W^T + b; the backward makes W anew, so that no layer's plain numbers outlive its product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Quantised, bias_O: Tensor | None) -> Tensor:
        ctx.held = held
        return linear(x, held.dequantised(x.dtype), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.held.dequantised(grads[0].dtype), None, None


def plain(layer: nn.Linear) -> nn.Linear:
    """A layer whose weight is plain numbers."""
    return layer.plain() if isinstance(layer, QuantisedLinear) else layer


def weight_of(layer: nn.Linear) -> Tensor:
    """W [O, I] as plain numbers, float32 if they have to be made."""
    return layer.held.dequantised(torch.float32) if isinstance(layer, QuantisedLinear) else layer.weight
