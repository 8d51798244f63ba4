"""Wanda (Sun et al., 2024, arXiv:2306.11695): a weight matters by its size times the norm of what it is multiplied by."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from tunesmith.data.example import Row
from tunesmith.models.load import Loaded

from .base import linears
from .sparse import Sparse
from .walk import visits


class Wanda(Sparse):
    """Of each output's weights those go whose |W| times the norm of their input, over training rows, is smallest: one pass through the layers, no
    gradients, no update of the weights that stay. The one to begin with among unstructured methods."""

    kind: Literal["wanda"] = "wanda"
    walks = True

    def silence(self, loaded: Loaded, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        """By |W| ||X||, a layer at a time, on inputs that the pruned layers before made."""
        for visit in visits(loaded, rows):
            norms = visit.norms()
            for name, linear in linears(visit.layer):
                self.drop(linear, linear.weight.detach().abs() * norms[name])
        return {}
