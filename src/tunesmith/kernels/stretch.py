"""Scales each output of a linear layer by a factor of its own, as weight-decomposed adapters do: one pass over the outputs, one over their gradient."""

import torch
from torch import Tensor

from . import native
from .noise import MASK, mixed


def stretch(out_TO: Tensor, factor_O: Tensor, bias_O: Tensor | None) -> None:
    """`out * factor + bias`, in place.

    Factors are float32, and close to 1 while they begin to learn. Rounded to the nearest, a number in bf16 would not follow one that is closer than its
    last place tells apart; so it goes to one of its two neighbours by chance, in proportion (stochastic rounding), drawn from its place alone.
    """
    if native.serves(out_TO):
        native.run("stretch", out_TO.dtype, out_TO, factor_O, bias_O, *out_TO.shape)
    else:
        stretch_reference(out_TO, factor_O, bias_O)


def stretch_reference(out_TO: Tensor, factor_O: Tensor, bias_O: Tensor | None) -> None:
    """The same by plain operations, to the bit."""
    exact_TO = out_TO.float() * factor_O
    if bias_O is not None:
        exact_TO += bias_O.float()
    if out_TO.dtype == torch.bfloat16:
        place_TO = torch.arange(out_TO.numel(), device=out_TO.device).view(out_TO.shape)
        exact_TO = (exact_TO.view(torch.int32) + (mixed(place_TO & MASK) >> 16).int() & -65536).view(torch.float32)
    out_TO.copy_(exact_TO)


def stretch_backward(grad_TO: Tensor, out_TO: Tensor, factor_O: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient [T, O] of what was stretched, and, float32 [O], the factor times its own.

    Args:
        grad_TO: gradient of what came out.
        out_TO: what came out.
        factor_O: float32.
        bias_O: what was added.
    """
    grad_TO = grad_TO.contiguous()
    if not native.serves(grad_TO):
        return backward_reference(grad_TO, out_TO, factor_O, bias_O)
    inner_TO, sums_O = torch.empty_like(grad_TO), factor_O.new_empty(len(factor_O))
    native.run("stretch_backward", grad_TO.dtype, grad_TO, out_TO, factor_O, bias_O, inner_TO, sums_O, *grad_TO.shape)
    return inner_TO, sums_O


def backward_reference(
    grad_TO: Tensor, out_TO: Tensor, factor_O: Tensor, bias_O: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by plain operations."""
    own_TO = out_TO.float() if bias_O is None else out_TO.float() - bias_O.float()
    return (grad_TO.float() * factor_O).to(grad_TO.dtype), (grad_TO.float() * own_TO).sum(0)
