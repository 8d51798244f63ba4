"""Tells a decoder's layers from its other modules."""

from typing import Any

from torch import nn

from tunesmith.base import ModelError


def decoder_layers(model: Any) -> list[Any]:
    """The layers of a decoder, from the lowest to the highest.

    Raises:
        ModelError: it has no list of layers.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    count = model.config.get_text_config().num_hidden_layers
    found = next((one for one in lists if len(one) == count), None)
    if found is None:
        raise ModelError(f"{type(model).__name__}: its layers cannot be told apart")
    return list(found)
