"""What an objective is: its hyper-parameters and one function."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from tunesmith.base import Family
from tunesmith.data.batch import Batch
from tunesmith.models.load import Loaded


class Loss(NamedTuple):
    """Sums, not means, so that micro-batches and ranks add up exactly."""

    total: Tensor
    """Scalar, differentiable; divided by the step's count outside."""
    stats: Mapping[str, Tensor] = {}
    """Further sums to report, divided by the same count."""


class Objective(Family):
    """What is minimised. A member is one file: fields, `__call__`, and perhaps `count`."""

    @abstractmethod
    def __call__(self, loaded: Loaded, batch: Batch) -> Loss:
        """The loss of a batch; log-probabilities come from `tunesmith.models.forward.token_logps`."""

    def count(self, batch: Batch) -> int:
        """How many things `total` sums over: supervised tokens, unless a member says otherwise."""
        return batch.supervised
