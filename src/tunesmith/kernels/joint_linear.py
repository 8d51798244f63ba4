"""Linear layers that read the same input, with their low-rank corrections, as one matrix product.

The weight is `[W | s B]`, the layers' rows stacked, and the input `[x | x A^T]`: base and correction share one float32 accumulator and are
rounded once. Apart, a bf16 layer rounds the base output first and then adds a correction that is often below half a unit of its last place:
early updates are lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from .arena import kept
from .int8_linear import Int8Weight
from .quantised_linear import Quantised
from .stretch import stretch, stretch_backward

PARAMETERS = 5
"""That a part may have: weight, bias, A, B and magnitude."""


@dataclass(frozen=True)
class Part:
    """Where one layer stands in the joint product, and what of it learns."""

    rows: slice
    """Its rows of the joint weight: its outputs."""
    columns: slice
    """Columns of its correction, counted behind the input's; empty without one."""
    scale: float
    """Factor of its correction."""


@dataclass(frozen=True)
class Joint:
    """A joint product as it stands: copies in the compute dtype, brought up to date by whoever owns the parameters."""

    weight_OJ: Tensor
    """[W | s B], J = I + R; [s B] alone if W is in few bits."""
    bias_O: Tensor | None
    down_RI: Tensor
    """A of every part, stacked."""
    parts: tuple[Part, ...]
    learnt: tuple[Tensor | None, ...]
    """Of each part weight [O, I], bias [O], A [R, I], B [O, R] and magnitude [O]: the parameters themselves, which gradients go to; None where there is none."""
    base: Quantised | None = None
    """W, if it is in few bits."""
    factor_O: Tensor | None = None
    """What each output is multiplied by before its bias is added, float32: its magnitude over the length of its row of W + s B A, where it has one."""

    @property
    def room(self) -> int:
        """R, the columns that the input must leave free."""
        return len(self.down_RI)

    @property
    def up(self) -> Tensor:
        """s B of every part [O, R]."""
        return self.weight_OJ[:, self.weight_OJ.shape[1] - self.room :]

    def plain(self) -> "Joint":
        """The same with W among the numbers of `weight_OJ`."""
        if self.base is None:
            return self
        return replace(self, weight_OJ=self.base.joined(self.weight_OJ), base=None)

    def folded(self) -> "Joint":
        """Plain, with the factors among the numbers of `weight_OJ`."""
        joint = self.plain()
        if joint.factor_O is None:
            return joint
        weight = (joint.weight_OJ.float() * joint.factor_O[:, None]).to(joint.weight_OJ.dtype)
        return replace(joint, weight_OJ=weight, factor_O=None)


def joint_linear(input_TJ: Tensor, joint: Joint, keep: bool = False) -> Tensor:
    """Outputs [T, O] of all parts side by side; the last R columns of the input are overwritten.

    Hu et al., 2021 (arXiv:2106.09685), eq. 3: W x + s B A x. With `keep`, the next operation keeps the outputs for its backward.
    """
    out: Tensor = _JointLinear.apply(input_TJ, joint, keep, *joint.learnt)  # type: ignore[no-untyped-call]
    return out


def reference(x_TI: Tensor, joint: Joint) -> Tensor:
    """The same by plain operations, from the parameters alone."""
    outs, joint = [], joint.plain()
    for number, part in enumerate(joint.parts):
        weight, bias, down, up, magnitude = joint.learnt[PARAMETERS * number : PARAMETERS * (number + 1)]
        weight = joint.weight_OJ[part.rows, : x_TI.shape[1]] if weight is None else weight
        out = linear(x_TI, weight.to(x_TI.dtype))
        if down is not None and up is not None:
            out = out + part.scale * linear(linear(x_TI, down.to(x_TI.dtype)), up.to(x_TI.dtype))
        if magnitude is not None and joint.factor_O is not None:  # the rows' lengths are as given, they get no gradient
            out = (out * (magnitude * (joint.factor_O[part.rows] / magnitude.detach()))).to(x_TI.dtype)
        out = out if bias is None else out + bias.to(x_TI.dtype)
        outs.append(out)
    return torch.cat(outs, 1)


class _JointLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_TJ: Tensor, joint: Joint, keep: bool, *learnt: Tensor | None) -> Tensor:
        input_TJ = input_TJ.data  # the free columns belong to this operation: writing them spoils nobody's backward
        fill(input_TJ, joint)
        out_TO = product(input_TJ, joint, kept(input_TJ, len(input_TJ), len(joint.weight_OJ)) if keep else None)
        ctx.save_for_backward(input_TJ, None if joint.factor_O is None else out_TO)
        ctx.joint = joint
        return out_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        moving, _, _, *learning = ctx.needs_input_grad
        input_TJ, out_TO = ctx.saved_tensors
        grad_TJ, *learnt = joint_backward(grads[0], input_TJ, out_TO, ctx.joint, moving, learning)
        return grad_TJ, None, None, *learnt


def fill(input_TJ: Tensor, joint: Joint) -> None:
    """Write x A^T into the columns that the input left free."""
    if joint.room:
        width = joint.down_RI.shape[1]
        input_TJ[:, width:] = input_TJ[:, :width] @ joint.down_RI.t()


def product(input_TJ: Tensor, joint: Joint, out: Tensor | None = None) -> Tensor:
    """[x | x A^T] [W | s B]^T, stretched, + b, written to `out` if it is given. W is multiplied in int8, or is made plain for as long as this takes."""
    base = joint.base if isinstance(joint.base, Int8Weight) else None
    joint = joint if base else joint.plain()
    known_TK = input_TJ[:, input_TJ.shape[1] - joint.room :] if base else input_TJ
    if joint.bias_O is None or joint.factor_O is not None:
        out = torch.mm(known_TK, joint.weight_OJ.t(), out=out)
    else:
        out = torch.addmm(joint.bias_O, known_TK, joint.weight_OJ.t(), out=out)
    if base:
        base.add_product(input_TJ[:, : input_TJ.shape[1] - joint.room], out)
    if joint.factor_O is not None:
        stretch(out, joint.factor_O, joint.bias_O)
    return out


def pull_back(grad_TO: Tensor, joint: Joint) -> Tensor:
    """Gradient of the input [T, J], behind it that of x A^T."""
    width = joint.down_RI.shape[1]
    if not isinstance(joint.base, Int8Weight):
        grad_TJ = grad_TO @ joint.plain().weight_OJ
        if joint.room:
            grad_TJ[:, :width].addmm_(grad_TJ[:, width:].contiguous(), joint.down_RI)
        return grad_TJ
    inner_TR = grad_TO @ joint.up
    grad_TJ = torch.cat([inner_TR @ joint.down_RI, inner_TR], 1)
    joint.base.add_back(grad_TO, grad_TJ[:, :width])
    return grad_TJ


def joint_backward(
    grad_TO: Tensor, input_TJ: Tensor, out_TO: Tensor | None, joint: Joint, moving: bool, learning: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, if it is `moving`, and of what is learnt, where it is `learning`; outputs are asked for where they were stretched."""
    width = joint.down_RI.shape[1]
    before_TO, sums_O = grad_TO, None
    if joint.factor_O is not None and out_TO is not None:
        before_TO, sums_O = stretch_backward(grad_TO, out_TO, joint.factor_O, joint.bias_O)
    grad_TJ, inner_TR = None, None
    if moving:
        grad_TJ = pull_back(before_TO, joint)
        inner_TR = grad_TJ[:, width:].contiguous() if joint.room else None
    elif joint.room:
        inner_TR = before_TO @ joint.up
    down_grad_RI = inner_TR.t() @ input_TJ[:, :width] if inner_TR is not None else None
    found: list[Tensor | None] = []
    for number, part in enumerate(joint.parts):
        first = PARAMETERS * number
        needed, magnitude = learning[first : first + PARAMETERS], joint.learnt[first + 4]
        weight, down, up = _part_backward(part, before_TO, input_TJ, width, down_grad_RI, needed)
        bias = grad_TO[:, part.rows].sum(0, dtype=torch.float32) if needed[1] else None
        length = None if sums_O is None or magnitude is None else sums_O[part.rows] / magnitude.detach()
        found += [weight, bias, down, up, length]
    return grad_TJ, *found


def _part_backward(
    part: Part, grad_TO: Tensor, input_TJ: Tensor, width: int, down_grad_RI: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of one part's weight, A and B, float32."""
    grad = grad_TO[:, part.rows]
    weight = (grad.t() @ input_TJ[:, :width]).float() if needed[0] else None
    down = down_grad_RI[part.columns].float() if needed[2] and down_grad_RI is not None else None
    up = None
    if needed[3]:
        inner = input_TJ[:, width + part.columns.start : width + part.columns.stop]
        up = (grad.t() @ inner).float() * part.scale
    return weight, down, up
