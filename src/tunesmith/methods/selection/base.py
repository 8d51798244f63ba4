"""What a selector is: it says which of the rows at hand are learnt from."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tunesmith.base import DataError, Family
from tunesmith.data.corpus import View
from tunesmith.data.example import Row

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The N rows that are chosen from."""

    examples: View
    rows: tuple[Row, ...]
    """The same as tokens."""
    model: str
    """What is to learn from them, by name."""


@dataclass(frozen=True)
class Chosen:
    """What a selector says."""

    places: Places
    """The rows chosen, each once."""
    facts: dict[str, Any] = field(default_factory=dict)
    """How, in JSON values, for the summary."""


class Selector(Family):
    """Which rows are learnt from. A member is one file: fields, and `choose`."""

    draws: ClassVar[bool] = True
    """Whether another seed may choose other rows."""
    size: float = Field(0.5, gt=0)
    """Rows to learn from: below 1 a fraction of those that there are, at least one, else a count. Half is our choice."""

    def count(self, there: int) -> int:
        """How many of so many rows.

        Raises:
            DataError: there are fewer than are wanted.
        """
        wanted = max(1, round(self.size * there)) if self.size < 1 else int(self.size)
        if wanted > there:
            raise DataError(
                f"prepare.select: {wanted:,} rows are wanted, and there are {there:,} to learn from; lower prepare.select.size"
            )
        return wanted

    def settled(self) -> Self:
        """The same with what depends on this machine decided, so that a choice names what made it."""
        return self

    @abstractmethod
    def choose(self, pool: Pool, count: int, seed: int) -> Chosen:
        """`count` of the pool's rows.

        Raises:
            DataError: there are not so many of this kind, or a row lacks what is asked.
            MachineError: a package is missing.
        """
