"""Which rows are held out: a pure function of the seed and of what the rows say, whatever their order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from tunesmith.base import ConfigError, DataError

from .corpus import View, firsts, gathered, telling_keys
from .example import Example

ANSWER = "answer"
"""Name that stands for the reference answer where a row has no such field: the class in a classification."""


def split(
    examples: Sequence[Example],
    parts: Mapping[str, float],
    *,
    seed: int,
    stratify: str | None = None,
    group: str | None = None,
) -> list[str]:
    """The side of every example: a name from `parts`, or `train`.

    Rows that ask the same always go to one side.

    Args:
        examples: rows to divide.
        parts: per side its size: below 1 a fraction of all rows (at least one where train keeps one), else a count.
        seed: another seed is another choice.
        stratify: field whose values keep their proportions on every side; `answer` is the reference answer.
        group: field of which each value goes to one side as a whole.

    Raises:
        ConfigError: the counts leave nothing to train on, or stratify and group are both given.
        DataError: a row lacks the field.
    """
    if stratify and group:
        raise ConfigError("prepare: stratify and group exclude each other; keep the one that matters more")
    sizes = _sizes(len(examples), parts)
    view = gathered({"train": examples})["train"]
    units = _units(view, group)
    stratum = _values(view, stratify) if stratify else [""] * len(view)
    sides = ["train"] * len(view)
    drawn = sorted(units, key=lambda unit: sha256(f"{seed}\0{unit.key}".encode()).digest())
    for side, wanted in sizes.items():
        free = [unit for unit in drawn if sides[unit.rows[0]] == "train"]
        for unit in _chosen(free, [stratum[unit.rows[0]] for unit in free], wanted):
            for row in unit.rows:
                sides[row] = side
    _check_groups(sides, sizes, group)
    return sides


class Unit(NamedTuple):
    """Rows that belong on one side."""

    key: str
    rows: tuple[int, ...]


def field_value(example: Example, field: str) -> str:
    """A field of a row as text, for grouping and counting.

    Raises:
        DataError: the row has no such field.
    """
    if field in example.meta:
        return str(example.meta[field])
    if field == ANSWER:
        return example.gold
    there = ", ".join(map(repr, example.meta)) or "none"
    raise DataError(
        f"{example.origin}: has no field {field!r} to stratify or group by; besides prompt and answer it has {there}"
    )


def _sizes(total: int, parts: Mapping[str, float]) -> dict[str, int]:
    """Rows per side, such that train keeps at least one and, of a tiny set, half."""
    counted = {side: int(size) for side, size in parts.items() if size >= 1}
    if counted and sum(counted.values()) >= total:
        text = " and ".join(f"{size} for {side}" for side, size in counted.items())
        raise ConfigError(f"prepare: {text} of {total} rows leaves none to train on; hold out fewer")
    left = total - sum(counted.values())
    sizes: dict[str, int] = {}
    for side, size in parts.items():
        share = max(1, round(size * total)) if 0 < size < 1 else 0
        sizes[side] = counted.get(side, min(share, max(0, left - 1)))
        left -= sizes[side] if side not in counted else 0
    return sizes


def _units(view: View, group: str | None) -> list[Unit]:
    """Rows that belong on one side, and what they share; in the order of their first rows."""
    if group:
        values = _values(view, group)
        first = firsts(np.array(values, dtype=object)) if values else np.zeros(0, dtype=np.int64)
    else:
        keys = telling_keys(view)
        first = firsts(keys)
    order = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    parts = [tuple(part.tolist()) for part in np.split(order, starts[1:])] if len(order) else []
    return [Unit(values[rows[0]] if group else keys[rows[0]].tobytes().hex(), rows) for rows in parts]


def _values(view: View, field: str) -> list[str]:
    """A field of every row as text, each text held once."""
    held: dict[str, str] = {}
    return [held.setdefault(value, value) for value in (field_value(example, field) for example in view)]


def _chosen(units: Sequence[Unit], strata: Sequence[str], wanted: int) -> list[Unit]:
    """Units with together at most `wanted` rows, each stratum in proportion; the smallest unit if all are larger."""
    counts = Counter[str]()
    for unit, stratum in zip(units, strata, strict=True):
        counts[stratum] += len(unit.rows)
    left = _shares(counts, wanted)
    chosen = []
    for unit, stratum in zip(units, strata, strict=True):
        if len(unit.rows) <= left[stratum]:
            left[stratum] -= len(unit.rows)
            chosen.append(unit)
    if not chosen and wanted and len(units) > 1:
        chosen.append(min(units, key=lambda unit: len(unit.rows)))
    return chosen


def _shares(counts: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Divide `wanted` over strata by the method of largest remainders; ties go by name."""
    total = sum(counts.values())
    exact = {name: wanted * count / total for name, count in counts.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: wanted - sum(shares.values())]:
        shares[name] += 1
    return shares


def _check_groups(sides: Sequence[str], sizes: Mapping[str, int], group: str | None) -> None:
    empty = [side for side, size in sizes.items() if size and side not in sides]
    if group and empty:
        raise DataError(
            f"prepare.group: {group!r} has too few values to give {empty[0]} a group of its own; split by another field"
        )
