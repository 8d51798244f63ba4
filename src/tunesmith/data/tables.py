"""The figures of a prepared data set: how long rows are and how classes are spread."""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .example import Row

CLASSES = 50


class Lengths:
    """How long the rows of a split are, counted as they come; eight bytes a row.

    A row with several answers is as long as its longest sequence; its tokens are those of all its sequences.
    """

    def __init__(self) -> None:
        self._longest, self._learnt = array("i"), array("i")
        self._tokens = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self._longest.append(len(row))
        self._learnt.append(row.supervised)
        self._tokens += sum(len(sequence) for sequence in row.sequences)

    def __len__(self) -> int:
        return len(self._longest)

    def table(self) -> dict[str, Any]:
        """Rows and, in tokens, the spread of lengths; all tokens, those that are prompt and those that are learnt."""
        learnt = sum(self._learnt)
        return {
            "rows": len(self),
            "length": spread(self._longest),
            "tokens": self._tokens,
            "prompt_tokens": self._tokens - learnt,
            "supervised_tokens": learnt,
            "supervised": spread(self._learnt),
        }


def spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile and largest; empty for no values."""
    if not values:
        return {}
    median, high = np.percentile(values, (50, 95), method="nearest")
    return {"min": min(values), "median": int(median), "p95": int(high), "max": max(values)}


def commonest(counts: Counter[str]) -> dict[str, int]:
    """Rows per value, the commonest first; at most CLASSES values."""
    return dict(counts.most_common(CLASSES))
