"""A linear layer and its low-rank correction in one matrix product: the twin of `joint_linear` for layers that stand alone."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, linear

from .quantised_linear import Quantised, QuantisedLinear, plain


class LoRALinear(nn.Module):
    """`x W^T + b + s x A^T B^T`: a frozen linear layer plus a correction that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropped: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale, self.dropout, self.enabled = scale, dropped, True
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        bound = 1 / math.sqrt(base.in_features)
        with torch.no_grad():
            self.lora_A.copy_(torch.rand(rank, base.in_features, generator=generator) * 2 * bound - bound)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        for name in ("start_A", "start_B"):
            self.register_buffer(name, None, persistent=False)
        self.to(base.weight.device)
        base.weight.requires_grad_(False)
        self.base = base
        self.train(base.training)  # a new module would begin in training mode, dropping inputs of a model that answers

    @property
    def width(self) -> int:
        """Columns that the correction takes in a joint product."""
        return len(self.lora_A) * (1 if self.start_A is None else 2)

    @property
    def frozen(self) -> Tensor | Quantised:
        """The base's weight as it is kept."""
        return self.base.held if isinstance(self.base, QuantisedLinear) else self.base.weight

    @torch.no_grad()
    def begin(self, down_RI: Tensor, up_OR: Tensor) -> None:
        """Start from a correction that is not zero; what it starts from is subtracted ever after, so that the layer starts as its base."""
        for parameter, value in ((self.lora_A, down_RI), (self.lora_B, up_OR)):
            parameter.copy_(value)
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    @property
    def down(self) -> Tensor:
        """A [R, I] of the whole correction; differentiable."""
        return self.lora_A if self.start_A is None else torch.cat([self.lora_A, self.start_A])

    @property
    def up(self) -> Tensor:
        """B [O, R] of the whole correction; differentiable."""
        return self.lora_B if self.start_B is None else torch.cat([self.lora_B, -self.start_B], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape; the last axis is the layer's input."""
        if not self.enabled:
            plain: Tensor = self.base(x)
            return plain
        if self.training and self.dropout > 0:
            dropped: Tensor = self.base(x) + correction(dropout(x, self.dropout), self.down, self.up, self.scale)
            return dropped
        flat = x.reshape(-1, x.shape[-1])
        out = lora_linear(flat, self.frozen, self.base.bias, self.down, self.up, self.scale)
        return out.view(*x.shape[:-1], -1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with the correction folded in, summed in float32 and rounded once."""
        base = plain(self.base)
        base.weight = nn.Parameter(self.corrected(base.weight).to(base.weight.dtype), requires_grad=False)
        return base

    def corrected(self, weight_OI: Tensor) -> Tensor:
        """The base's weight with the correction, float32."""
        return weight_OI.float() + self.scale * self.up @ self.down


def lora_linear(
    x_TI: Tensor, weight_OI: Tensor | Quantised, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
) -> Tensor:
    """x W^T + b + s x A^T B^T in one product; W is frozen."""
    if not x_TI.is_meta and torch.is_autocast_enabled(x_TI.device.type):
        x_TI = x_TI.to(torch.get_autocast_dtype(x_TI.device.type))
    out: Tensor = _LoRALinear.apply(x_TI, weight_OI, bias_O, down_RI, up_OR, scale)  # type: ignore[no-untyped-call]
    return out


def reference(
    x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
) -> Tensor:
    """The same by plain operations."""
    return linear(x_TI, weight_OI, bias_O) + correction(x_TI, down_RI, up_OR, scale)


def correction(x_TI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """s x A^T B^T (Hu et al., 2021, arXiv:2106.09685, eq. 3)."""
    return scale * linear(linear(x_TI, down_RI.to(x_TI.dtype)), up_OR.to(x_TI.dtype))


class _LoRALinear(torch.autograd.Function):
    """`[x | x A^T] [W | s B]^T`: base and correction are summed in one float32 accumulator and rounded once."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, weight_OI: Tensor | Quantised, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        down, up = down_RI.to(x_TI.dtype), (scale * up_OR).to(x_TI.dtype)
        inner_TR = x_TI @ down.t()
        weight = None
        if isinstance(weight_OI, Tensor):
            weight = weight_OI.to(x_TI.dtype)
            joint_OJ = torch.cat([weight, up], 1)
        else:  # the backward makes it plain again
            joint_OJ = weight_OI.joined(up)
        ctx.save_for_backward(x_TI, weight, down, up, inner_TR)
        ctx.scale, ctx.held = scale, weight_OI
        bias = None if bias_O is None else bias_O.to(x_TI.dtype)
        return linear(torch.cat([x_TI, inner_TR], 1), joint_OJ, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grads
        x_TI, weight_OI, down_RI, up_OR, inner_TR = ctx.saved_tensors
        grad_inner_TR = grad_TO @ up_OR
        d_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.held.dequantised(grad_TO.dtype) if weight_OI is None else weight_OI
            d_x = torch.addmm(grad_TO @ weight, grad_inner_TR, down_RI)
        d_down = (grad_inner_TR.t() @ x_TI).float()
        d_up = (grad_TO.t() @ inner_TR).float() * ctx.scale
        d_bias = grad_TO.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, None, d_bias, d_down, d_up, None
