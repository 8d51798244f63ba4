"""Half fine-tuning (Hui et al., 2024, arXiv:2404.18466): of every kind of matrix half learns, drawn by seed, so that the other half remembers."""

from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from tunesmith.models.layers import decoder_layers

from .weights import Weights


class Half(Weights):
    """Full fine-tuning that is to forget less: in each layer half of the matrices and norms stay as they are, without gradients or moments.

    Embeddings, the head and the last norm learn. Of a kind that has an odd number of matrices in a layer, the larger part learns in half of the layers.
    """

    kind: Literal["half"] = "half"
    round: int = Field(0, ge=0)
    """Which draw: the next one for the next task, so that each learns with another half."""

    def chosen(self, model: Any, seed: int) -> set[str]:
        """Half of each layer's attention matrices, feed-forward matrices and norms; everything outside the layers."""
        layers = decoder_layers(model)
        inside = {id(one) for layer in layers for one in layer.parameters()}
        learning = {id(one) for one in model.parameters()} - inside
        generator = np.random.default_rng([seed, self.round])
        for place in range(3):
            larger = generator.permutation(len(layers)) < len(layers) / 2
            for layer, more in zip(layers, larger, strict=True):
                modules = _kinds(layer)[place]
                count = -(-len(modules) // 2) if more else len(modules) // 2
                for number in generator.permutation(len(modules))[:count]:
                    learning |= {id(one) for one in modules[number].parameters()}
        return {name for name, one in model.named_parameters() if id(one) in learning}


def _kinds(layer: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """A layer's attention matrices, its other matrices, and its norms."""
    leaves = [(name, one) for name, one in layer.named_modules() if not list(one.children()) and list(one.parameters())]
    matrices = [(name, one) for name, one in leaves if any(weight.ndim > 1 for weight in one.parameters())]
    attention = [one for name, one in matrices if "attn" in name or "attention" in name]
    others = [one for name, one in matrices if not ("attn" in name or "attention" in name)]
    norms = [one for _, one in leaves if all(weight.ndim < 2 for weight in one.parameters())]
    return attention, others, norms
