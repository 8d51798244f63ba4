"""Residual addition and RMSNorm (Zhang and Sennrich, 2019, arXiv:1910.07467) in one pass; the residual stream stays float32."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native
from .arena import kept


def add_norm(
    residual_TD: Tensor, update_TD: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype, room: int = 0
) -> tuple[Tensor, Tensor]:
    """The new residual, float32 [T, D], and its norm in `dtype` [T, D + room], zero beyond D.

    Args:
        residual_TD: float32.
        update_TD: what a block adds to it, in `dtype`; None where nothing is added.
        weight_D: float32, none of it zero, since the backward divides by it.
        eps: added to the mean square.
        dtype: of the norm.
        room: columns for a low-rank part (`joint_linear`).
    """
    if not native.serves(residual_TD):
        return reference(residual_TD, update_TD, weight_D, eps, dtype, room)
    out: tuple[Tensor, Tensor] = _AddNorm.apply(residual_TD, update_TD, weight_D, eps, dtype, room)  # type: ignore[no-untyped-call]
    return out


def reference(
    residual_TD: Tensor, update_TD: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype, room: int = 0
) -> tuple[Tensor, Tensor]:
    """The same by plain operations."""
    if update_TD is not None:
        residual_TD = residual_TD + update_TD.float()
    scale_T1 = torch.rsqrt(residual_TD.square().mean(-1, keepdim=True) + eps)
    normed_TD = (residual_TD * scale_T1 * weight_D).to(dtype)
    return residual_TD, torch.nn.functional.pad(normed_TD, (0, room))


class _AddNorm(torch.autograd.Function):
    """The backward takes x / rms(x) from the output, which the next layer keeps anyway."""

    @staticmethod
    def forward(
        ctx: Any, residual_TD: Tensor, update_TD: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype, room: int
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows, width = residual_TD.shape
        residual_TD, update_TD = residual_TD.contiguous(), None if update_TD is None else update_TD.contiguous()
        out_TW = kept(residual_TD, rows, width + room, dtype)
        sum_TD, scale_T = torch.empty_like(residual_TD), residual_TD.new_empty(rows)
        native.run(
            "add_norm", dtype, residual_TD, update_TD, weight_D, sum_TD, out_TW, width + room, scale_T, rows, width, eps
        )
        ctx.save_for_backward(out_TW, weight_D, scale_T)
        ctx.updated = update_TD is not None
        ctx.set_materialize_grads(False)
        return sum_TD, out_TW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_sum_TD, grad_out_TW = grads
        out_TW, weight_D, scale_T = ctx.saved_tensors
        rows, width = len(scale_T), len(weight_D)
        if grad_out_TW is None:
            update = grad_sum_TD.to(out_TW.dtype) if grad_sum_TD is not None and ctx.updated else None
            return grad_sum_TD, update, None, None, None, None
        grad_out_TW = grad_out_TW.contiguous()
        grad_TD = scale_T.new_empty(rows, width)
        update_TD = out_TW.new_empty(rows, width)
        before = None if grad_sum_TD is None else grad_sum_TD.contiguous()
        native.run(
            "add_norm_backward", out_TW.dtype, before, grad_out_TW, grad_out_TW.shape[1], out_TW, out_TW.shape[1],
            weight_D, scale_T, grad_TD, update_TD, rows, width,
        )  # fmt: skip
        d_weight = None
        if ctx.needs_input_grad[2]:
            d_weight = (grad_out_TW[:, :width].float() * out_TW[:, :width].float()).sum(0) / weight_D
        return grad_TD, update_TD if ctx.updated else None, d_weight, None, None, None
