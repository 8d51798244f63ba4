"""Brings a model's linear layers to few bits: kept so for training, or rounded to what the bits hold for all that comes after."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.kernels.int8_linear import Int8Linear
from tunesmith.kernels.nf4_linear import NF4Linear
from tunesmith.kernels.quantised_linear import QuantisedLinear

KINDS: dict[str, type[QuantisedLinear]] = {"int8": Int8Linear, "nf4": NF4Linear}
"""What keeps a linear layer in each precision of few bits."""


@torch.no_grad()
def quantise(model: Any, precision: str, dtype: torch.dtype) -> None:
    """Keep every linear layer but the output head in int8 or nf4, and all other weights in `dtype`."""
    model.requires_grad_(False)
    for parent, name, layer in list(_layers(model)):
        setattr(parent, name, KINDS[precision](layer, dtype))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def round_to(model: Any, precision: str) -> None:
    """Give those layers the weights that `quantise` would, as plain numbers."""
    for _, _, layer in _layers(model):
        dtype = layer.weight.dtype
        layer.weight.copy_(KINDS[precision](layer, dtype).held.dequantised(dtype))


def _layers(model: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer)."""
    head = model.get_output_embeddings()
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child is not head:
                yield parent, name, child
