"""A gated activation (Shazeer, 2020, arXiv:2002.05202) and the linear layer behind it; the activation is computed anew in the backward, not kept."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native
from .joint_linear import Joint, fill, joint_backward, joint_linear, product

Activation = Literal["silu", "gelu_tanh"]
KINDS = {"silu": 0, "gelu_tanh": 1}


def gated_linear(gate_up_TG: Tensor, activation: Activation, joint: Joint) -> Tensor:
    """Outputs [T, O] of `joint` for activation(gate) * up, given [gate | up] side by side [T, 2 I]."""
    if not native.serves(gate_up_TG):
        padded = torch.nn.functional.pad(glu_reference(gate_up_TG, activation), (0, joint.room))
        return joint_linear(padded, joint)
    out: Tensor = _GatedLinear.apply(gate_up_TG, activation, joint, *joint.learnt)  # type: ignore[no-untyped-call]
    return out


def glu_reference(gate_up_TG: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up [T, I] by plain operations."""
    gate, up = gate_up_TG.float().chunk(2, 1)
    if activation == "silu":
        bent = torch.nn.functional.silu(gate)
    else:
        bent = torch.nn.functional.gelu(gate, approximate="tanh")
    return (bent * up).to(gate_up_TG.dtype)


def glu(gate_up_TG: Tensor, activation: Activation, room: int) -> Tensor:
    """The same in one pass [T, I + room], zero beyond I; not differentiable."""
    rows, width = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
    out = gate_up_TG.new_empty(rows, width + room)
    native.run("glu", gate_up_TG.dtype, gate_up_TG, out, width + room, rows, width, KINDS[activation])
    return out


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TG: Tensor, activation: Activation, joint: Joint, *learnt: Tensor | None) -> Tensor:
        input_TJ = glu(gate_up_TG, activation, joint.room)
        fill(input_TJ, joint)
        inner_TR = input_TJ[:, gate_up_TG.shape[1] // 2 :].clone()
        out_TO = product(input_TJ, joint)
        ctx.save_for_backward(gate_up_TG, inner_TR, None if joint.factor_O is None else out_TO)
        ctx.activation, ctx.joint = activation, joint
        return out_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up_TG, inner_TR, out_TO = ctx.saved_tensors
        rows, width = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
        input_TJ = glu(gate_up_TG, ctx.activation, ctx.joint.room)
        input_TJ[:, width:] = inner_TR
        moving, _, _, *learning = ctx.needs_input_grad
        grad_TJ, *learnt = joint_backward(grads[0], input_TJ, out_TO, ctx.joint, moving, learning)
        grad_TG = None
        if grad_TJ is not None:
            grad_TG = torch.empty_like(gate_up_TG)
            native.run(
                "glu_backward",
                gate_up_TG.dtype,
                gate_up_TG,
                grad_TJ,
                grad_TJ.shape[1],
                grad_TG,
                rows,
                width,
                KINDS[ctx.activation],
            )
        return grad_TG, None, None, *learnt
