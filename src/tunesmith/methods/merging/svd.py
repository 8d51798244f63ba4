"""The weighted sum of low-rank corrections, cut to a rank by a singular value decomposition (PEFT's `svd`)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from tunesmith.base import ConfigError

from .base import Cut


class SVD(Cut):
    """The sum that `cat` writes, in an adapter of smaller rank: by default the largest of the runs' ranks. It loses what does not fit."""

    kind: Literal["svd"] = "svd"
    rank: int | None = Field(None, gt=0)
    """Rank of the adapter that is written; null takes the largest of the runs' ranks. `kept` in the figures says how much of the sum that holds."""

    def check(self, ranks: Sequence[int] | None) -> None:
        """Only low-rank corrections are cut."""
        if ranks is None:
            raise ConfigError(
                "merge.method: what these runs learnt is no low-rank correction that svd could cut; take cat, which adds it up"
            )

    def width(self, ranks: Sequence[int]) -> int:
        """The rank that is kept."""
        return self.rank or max(ranks)
