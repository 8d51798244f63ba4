"""Magnitude pruning (Han et al., 2015, arXiv:1506.02626): the smallest weights go."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from tunesmith.data.example import Row
from tunesmith.models.load import Loaded

from .base import linears, prunable_layers
from .sparse import Sparse


class Magnitude(Sparse):
    """The smallest weights go, whatever they are multiplied by. It needs no rows, and of an architecture only that its layers are linear ones; in
    Wanda's paper it loses clearly more than `wanda` where half of the weights go."""

    kind: Literal["magnitude"] = "magnitude"
    within: Literal["matrix", "row"] = "matrix"
    """Among which weights the smallest are looked for: those of a layer, or those of one output. With a pattern, its own few."""

    @property
    def compared(self) -> Literal["row", "matrix"]:
        """As set."""
        return self.within

    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """By |W|."""
        for layer in prunable_layers(loaded.model):
            for _, linear in linears(layer):
                self.drop(linear, linear.weight.detach().abs())
        return {}
