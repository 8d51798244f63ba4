"""Whole layers go, those that change least what passes through them (ShortGPT: Men et al., 2024, arXiv:2403.03853)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.base import ModelError
from tunesmith.data.example import Row
from tunesmith.models.load import Loaded

from .structured import Structured, largest
from .walk import Visit, visits


class Layers(Structured):
    """The layers go whose output is most like their input: 1 - cosine, in the mean over tokens, the paper's block influence. Reading and writing get
    quicker by what goes."""

    kind: Literal["layers"] = "layers"
    count: int = Field(1, ge=1)
    """How many go; one, the fewest, is our choice, the paper takes a quarter of a large model's."""

    def left(self, config: Any) -> dict[str, Any]:
        """Fewer layers."""
        if self.count >= config.num_hidden_layers:
            raise ModelError(
                f"prune.method.count {self.count}: the model has {config.num_hidden_layers} layers; leave at least one"
            )
        return {"num_hidden_layers": config.num_hidden_layers - self.count}

    @torch.no_grad()
    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """Layers that go add nothing to what passes through them."""
        influence_L = torch.stack([influence(visit) for visit in visits(loaded, rows)])
        layers = loaded.model.model.layers
        kept = set(largest(influence_L, len(layers) - self.count).tolist())
        for number, layer in enumerate(layers):
            for last in () if number in kept else (layer.self_attn.o_proj, layer.mlp.down_proj):
                for parameter in last.parameters():
                    parameter.zero_()
        return {number: torch.empty(0) for number in kept}

    def cut(self, name: str, tensor: Tensor, kept: Tensor, layer: Any) -> Tensor:
        """All of it."""
        return tensor


def influence(visit: Visit) -> Tensor:
    """How much a layer changes what passes through it: 1 - cosine of output and input, in the mean over tokens."""
    cosines = [
        torch.cosine_similarity(call.hidden, call.through(visit.layer), dim=-1).flatten() for call in visit.calls
    ]
    return 1 - torch.cat(cosines).double().mean()
