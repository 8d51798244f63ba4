"""What an optimizer is: a recipe for a torch optimizer over named parameters."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from tunesmith.base import Family


class Optimizer(Family):
    """How weights move. `build` returns a torch optimizer whose `step(closure)` computes the loss itself."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over what learns; names tell, for example, which weights decay."""

    def state_bytes(self, parameters: Iterable[nn.Parameter]) -> int:
        """Memory that its state takes, in bytes."""
        return 0
