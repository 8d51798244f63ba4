"""Activation checkpointing (Chen et al., 2016, arXiv:1604.06174): of a layer only the inputs are kept, and the backward computes the rest again."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar, copy_context
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .arena import kept, reusing

Surroundings = Callable[[], AbstractContextManager[Any]]

around: ContextVar[Surroundings] = ContextVar("around", default=nullcontext)
"""Makes what must surround the second computation, where the first stands in something that torch does not restore by itself."""


def recomputed(layer: Callable[..., Any], *inputs: Any) -> Any:
    """`layer(*inputs)`, to be computed a second time by the backward, within the same context variables and with the same random draws.

    The result and all gradients are, bit for bit, those of the plain call. The second computation takes the arena's room that the one
    before it had, whose backward is over.
    """
    context, again = copy_context(), _Within(around.get(), reusing())
    return checkpoint(context.run, layer, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again))


class _Within:
    """A context made of others, anew each time."""

    def __init__(self, *surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.entered = ExitStack()

    def __enter__(self) -> None:
        for make in self.surroundings:
            self.entered.enter_context(make())

    def __exit__(self, *error: object) -> None:
        self.entered.close()


def compact(layer: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's residual, float32 [T, D], and update, `dtype` [T, D], moved into the arena; what else it took there is free again."""
    like = inputs[0]
    rows, width = like.shape
    places = kept(like, rows, width), kept(like, rows, width, dtype)
    with reusing()():
        residual, update = layer(*inputs)
        return _Moved.apply(residual, places[0]), _Moved.apply(update, places[1])  # type: ignore[no-untyped-call]


class _Moved(torch.autograd.Function):
    """A copy at a given place."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, place: Tensor) -> Tensor:
        place = place.data  # an output of its own, not the input again
        return place.copy_(source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
