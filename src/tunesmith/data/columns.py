"""Numbers that stand in fields of the user's rows, as columns that an objective reads."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .example import WEIGHT
from .intake import Item
from .ledger import Ledger

LARGEST = float(np.finfo(np.float32).max)
"""What a batch can hold of a number; a larger one would be infinite there."""


def with_columns(items: list[Item], fields: Mapping[str, str], ledger: Ledger) -> list[Item]:
    """Examples with the number in each of `fields` as a column of the name beside it; those that lack one are quarantined."""
    found = []
    for item in items:
        columns = dict(item.example.columns)
        given = {**item.example.meta, **columns}
        for field, column in fields.items():
            number, least = _number(given.get(field)), 0.0 if column == WEIGHT else -math.inf
            if not (abs(number) <= LARGEST and number >= least):
                what = "number from 0 up" if column == WEIGHT else "number"
                ledger.settle(item.row, "quarantined", f"{field!r} is no {what}: it is {given.get(field)!r}")
                break
            columns[column] = number
        else:
            found.append(Item(item.row, replace(item.example, columns=columns)))
    return found


def _number(value: Any) -> float:
    """A number, also one written as text; nan for anything else."""
    try:
        return float("nan" if isinstance(value, bool) or value is None else value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
