"""What a retriever is: it keeps texts so that each question finds those most like it."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.base import Family


@dataclass(frozen=True)
class Index:
    """N texts, ready to be asked."""

    about: str
    """How texts are compared, in words."""
    scores: Callable[[Sequence[str]], NDArray[np.float64]]
    """How like Q questions are to them, [Q, N]; more is likelier to be of use."""
    vectors_ND: NDArray[np.float64] | None = None
    """The texts as vectors of length 1, where that is how they are compared."""


class Retriever(Family):
    """How the texts that a question needs are found. A member is one file: fields, and `index`."""

    def settled(self) -> Self:
        """The same with what depends on this installation decided, so that a result names what made it."""
        return self

    @abstractmethod
    def index(self, texts: Sequence[str]) -> Index:
        """Get texts ready.

        Raises:
            MachineError: a package is missing.
        """


def nearest(scores_QN: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """For each question the places of its `count` best texts, [Q, count], the best first; of equals the earlier one."""
    found: NDArray[np.int64] = np.argsort(-scores_QN, axis=1, kind="stable")[:, :count]
    return found
