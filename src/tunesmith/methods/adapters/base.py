"""What an adapter is: which weights learn, and how they are kept."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from torch import nn

from tunesmith.base import Family
from tunesmith.data.example import Row
from tunesmith.models.load import Loaded


class Adapter(Family):
    """Which weights learn. Weights that learn are float32, whatever the others are kept in."""

    adds_weights: ClassVar[bool] = False
    """Whether it leaves the base as it is and learns weights of its own beside it."""
    neutral: ClassVar[bool] = True
    """Whether the model, just attached, still answers as its base."""
    merges: ClassVar[bool] = True
    """Whether what it learnt can become a part of the weights that the model has; else it stands beside them, or the model becomes another."""

    frozen_base: ClassVar[bool] = False
    """Whether what it learns holds only as long as the base stays as it is."""

    @abstractmethod
    def attach(self, loaded: Loaded, seed: int) -> None:
        """Change the model in place and mark what learns; the same seed gives the same weights."""

    def begin(self, loaded: Loaded, rows: Sequence[Row], seed: int) -> None:
        """Take from the training rows what is not learnt by steps; once, before the first."""

    @abstractmethod
    def save(self, loaded: Loaded, folder: Path) -> None:
        """Write what was learnt into `folder` in the format other programs read."""

    @abstractmethod
    def restore(self, loaded: Loaded, folder: Path) -> None:
        """Attach to a freshly loaded model and read what `save` wrote; nothing is left to learn.

        Raises:
            ModelError: the files do not fit this model.
        """

    @abstractmethod
    def merge(self, loaded: Loaded) -> None:
        """Fold what was learnt into plain weights, so that the model is again one of its architecture."""

    @contextmanager
    def disabled(self, loaded: Loaded) -> Iterator[None]:
        """Within this block the model answers as its base; only for adapters that add weights."""
        raise NotImplementedError(f"{self.kind} changes the base itself")
        yield


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that learns, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
