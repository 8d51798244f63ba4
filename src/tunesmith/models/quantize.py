"""Brings a model's linear layers to int8: kept so for training, or rounded to what int8 holds for all that comes after."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.kernels.int8_linear import Int8Linear, Int8Weight


@torch.no_grad()
def to_int8(model: Any, dtype: torch.dtype) -> None:
    """Keep every linear layer but the output head in int8, and all other weights in `dtype`."""
    model.requires_grad_(False)
    for parent, name, layer in list(_layers(model)):
        setattr(parent, name, Int8Linear(layer, dtype))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def round_to_int8(model: Any) -> None:
    """Give those layers the weights that `to_int8` would, as plain numbers."""
    for _, _, layer in _layers(model):
        layer.weight.copy_(Int8Weight.of(layer.weight).dequantised(layer.weight.dtype))


def _layers(model: Any) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer)."""
    head = model.get_output_embeddings()
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child is not head:
                yield parent, name, child
