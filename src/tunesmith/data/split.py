"""Which rows are held out: a pure function of the seed and of what the rows say, whatever their order."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from tunesmith.base import ConfigError, DataError

from .classes import ANSWER, NONE, missing, rarest, values
from .corpus import KEY, View, firsts, gathered, telling_keys
from .example import Example


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
        stratify: path of what keeps its proportions on every side, as in `classes.values`; of several values the rarest counts.
        group: field of which each value goes to one side as a whole.

    Raises:
        ConfigError: the counts leave nothing to train on, or stratify and group are both given.
        DataError: a row lacks the field.
    """
    if stratify and group:
        raise ConfigError("prepare: stratify and group exclude each other; keep the one that matters more")
    sizes = _sizes(len(examples), parts)
    view = gathered({"train": examples})["train"]
    units = _units(view, seed, group)
    names, strata = ([""], np.zeros(len(view), dtype=np.int64))
    if stratify:
        names, _, strata = rarest(values(example, stratify) for example in view)
        if names == [NONE]:
            raise DataError(f"prepare.stratify: no row's answer has {stratify!r}; name a field that is there")
    strata = strata[units.rows[units.starts]]
    side_N = np.zeros(len(view), dtype=np.int8)
    free = units.drawn
    for number, wanted in enumerate(sizes.values(), 1):
        chosen = _chosen(free, units.sizes, names, strata, wanted)
        for unit in np.flatnonzero(chosen).tolist():
            side_N[units.rows[units.starts[unit] : units.starts[unit] + units.sizes[unit]]] = number
        free = free[~chosen[free]]
    sides = [("train", *sizes)[number] for number in side_N.tolist()]
    _check_groups(sides, sizes, group)
    return sides


@dataclass(frozen=True)
class Units:
    """Rows that belong on one side; U units in the order of their first rows."""

    rows: np.ndarray
    """int64 [N]: the rows of each unit, one unit behind the other."""
    starts: np.ndarray
    """int64 [U]: where a unit's rows begin in `rows`; the first is its earliest."""
    sizes: np.ndarray
    """int64 [U]: how many rows it has."""
    drawn: np.ndarray
    """int64 [U]: the units in the order in which they are held out."""


def field_value(example: Example, field: str) -> str:
    """A field of a row as text, for grouping.

    Raises:
        DataError: the row has no such field, or null in it, as tables have where a cell is empty.
    """
    value = example.meta.get(field)
    if value is not None:
        return str(value)
    if field == ANSWER:
        return example.gold
    raise DataError(missing(example, field))


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


def _units(view: View, seed: int, group: str | None) -> Units:
    """Rows by what they share: a field's value, or what they ask. The order of being held out follows from that and the seed alone."""
    if group:
        values, keys = _values(view, group)
    else:
        values, keys = [], telling_keys(view)
    drawn_by = keys if group else telling_keys(view, words=True)  # who is held out does not hang on signs
    first = firsts(keys)
    rows = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[rows], prepend=-1))
    shared = (values[key] if group else key.tobytes().hex() for key in drawn_by[rows[starts]])
    draws = b"".join(sha256(f"{seed}\0{key}".encode()).digest() for key in shared)
    drawn = np.argsort(np.frombuffer(draws, dtype=KEY), kind="stable")
    return Units(rows, starts, np.diff(starts, append=len(rows)), drawn)


def _values(view: View, field: str) -> tuple[list[str], np.ndarray]:
    """A field's different values as text, and per row (int64 [N]) the number of its value."""
    numbers: dict[str, int] = {}
    found = array("q", (numbers.setdefault(field_value(example, field), len(numbers)) for example in view))
    return list(numbers), np.array(found, dtype=np.int64)


def _chosen(free: np.ndarray, sizes: np.ndarray, names: list[str], strata: np.ndarray, wanted: int) -> np.ndarray:
    """bool [U]: units with together at most `wanted` rows, each stratum in proportion; the smallest unit if all are larger.

    Args:
        free: the units to choose from, in the order of choice.
        sizes: rows of each unit.
        names: what strata are called.
        strata: stratum of each unit.
        wanted: rows.
    """
    counts = np.bincount(strata[free], sizes[free], minlength=len(names)).astype(int).tolist()
    parts = shares({name: count for name, count in zip(names, counts, strict=True) if count}, wanted)
    left = [parts.get(name, 0) for name in names]
    chosen = np.zeros(len(sizes), dtype=bool)
    for unit, size, stratum in zip(free, sizes[free], strata[free], strict=True):
        if size <= left[stratum]:
            left[stratum] -= size
            chosen[unit] = True
    if not chosen.any() and wanted and len(free) > 1:
        chosen[free[sizes[free].argmin()]] = True
    return chosen


def shares(counts: Mapping[str, float], wanted: int) -> dict[str, int]:
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
