"""A linear layer and its low-rank correction in one matrix product, so that both share one fp32 accumulator.

Apart, a bf16 layer rounds the base output first and then adds a correction that is often below half a unit of its last place: early
updates are lost. Here the weight is `[W | s B]` and the input `[x | x A^T]`: rounding happens once, after the sum.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def reference(
    x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
) -> Tensor:
    """x W^T + b + s x A^T B^T (Hu et al., 2021, arXiv:2106.09685, eq. 3) by plain operations."""
    return linear(x_TI, weight_OI, bias_O) + correction(x_TI, down_RI, up_OR, scale)


def correction(x_TI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> Tensor:
    """s x A^T B^T."""
    return scale * linear(linear(x_TI, down_RI.to(x_TI.dtype)), up_OR.to(x_TI.dtype))


def lora_linear(
    x_TI: Tensor, joint_OJ: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
) -> Tensor:
    """The same in one product.

    Args:
        x_TI: input, in the dtype of the base weight.
        joint_OJ: `[W | s B]`, J = I + R, kept up to date by the caller; only its first I columns are W.
        bias_O: bias of the base layer.
        down_RI: A, trainable, float32.
        up_OR: B, trainable, float32; read through `joint_OJ`, named here so that it gets its gradient.
        scale: s.
    """
    out: Tensor = _LoRALinear.apply(x_TI, joint_OJ, bias_O, down_RI, up_OR, scale)  # type: ignore[no-untyped-call]
    return out


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, joint_OJ: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
    ) -> Tensor:
        tokens, width = x_TI.shape
        down = down_RI.to(x_TI.dtype)
        input_TJ = x_TI.new_empty(tokens, joint_OJ.shape[1])
        input_TJ[:, :width] = x_TI
        input_TJ[:, width:] = x_TI @ down.t()
        ctx.save_for_backward(input_TJ, joint_OJ, down)
        ctx.scale = scale
        return linear(input_TJ, joint_OJ, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TO,) = grads
        input_TJ, joint_OJ, down_RI = ctx.saved_tensors
        width = down_RI.shape[1]
        grad_TJ = grad_TO @ joint_OJ
        inner_TR = grad_TJ[:, width:]
        d_x = torch.addmm(grad_TJ[:, :width], inner_TR, down_RI) if ctx.needs_input_grad[0] else None
        d_down = (inner_TR.t() @ input_TJ[:, :width]).float()
        d_up = (grad_TO.t() @ input_TJ[:, width:]).float() * ctx.scale
        d_bias = grad_TO.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, None, d_bias, d_down, d_up, None
