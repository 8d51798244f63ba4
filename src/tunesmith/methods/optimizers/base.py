"""What an optimizer is: a recipe for a torch optimizer over named parameters."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from tunesmith.base import Family


class Optimizer(Family):
    """How weights move. `build` returns a torch optimizer whose `step(closure)` computes the loss itself."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over what learns; names tell, for example, which weights decay."""

    @property
    def bytes_per_parameter(self) -> int:
        """Memory of its state, in bytes for each parameter that learns."""
        return 0
