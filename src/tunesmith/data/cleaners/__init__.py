"""Rows that are well-formed and yet should not be there: one file per way to find them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.base import Family, load_members

from ..example import Example

NAMED = 20
"""How many findings are listed by origin in a summary; all of them are counted."""


@dataclass(frozen=True)
class Drop:
    """A row to take out, and why."""

    split: str
    index: int
    """Its place in the split that the cleaner was given."""
    reason: str
    """`what: detail`; what stands before the colon is the same for all rows dropped for this reason."""


@dataclass(frozen=True)
class Findings:
    """What a cleaner found."""

    drops: tuple[Drop, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and named rows for the summary; JSON values."""


class Cleaner(Family):
    """Looks at all splits at once and says which rows to drop."""

    @abstractmethod
    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Rows to drop from `train`, `validation` and `test`; of two equal rows the earlier stays."""


load_members(__name__, __path__)

__all__ = ["NAMED", "Cleaner", "Drop", "Findings"]
