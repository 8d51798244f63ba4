"""The figures of a prepared data set: how long rows are and how classes are spread."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .example import Example, Row
from .split import field_value

CLASSES = 50


def length_table(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows and, in tokens, the spread of lengths; all tokens, those that are prompt and those that are learnt.

    A row with several answers is as long as its longest sequence; its tokens are those of all its sequences.
    """
    tokens = [sum(len(sequence) for sequence in row.sequences) for row in rows]
    learnt = [row.supervised for row in rows]
    return {
        "rows": len(rows),
        "length": spread([len(row) for row in rows]),
        "tokens": sum(tokens),
        "prompt_tokens": sum(tokens) - sum(learnt),
        "supervised_tokens": sum(learnt),
        "supervised": spread(learnt),
    }


def spread(values: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile and largest; empty for no values."""
    if not values:
        return {}
    median, high = np.percentile(values, (50, 95), method="nearest")
    return {"min": min(values), "median": int(median), "p95": int(high), "max": max(values)}


def class_table(examples: Sequence[Example], field: str) -> dict[str, int]:
    """Rows per value of a field, the commonest first; at most CLASSES values."""
    return dict(Counter(field_value(example, field) for example in examples).most_common(CLASSES))
