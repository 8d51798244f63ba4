"""Intervals, paired differences and their power, for any figure that is a function of how often each row counts.

A share is a ratio of two sums over rows, perplexity the exponential of one, BLEU and macro F1 functions of a few more. So one
bootstrap serves them all: a resample of rows is a vector of counts, and its figure is `value(counts @ statistics)`. A figure of
ranks gathers its rows another way (`ranked.py`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Value = Callable[[Array], Array]

SEED = 0
RESAMPLES = 4000
CONFIDENCE = 0.95
POWER = 0.80
ROUNDING = 1e-9
"""What sums of the same numbers in another order differ by at most, as a share of them; figures that are no further apart are equal."""
_CELLS = 4_000_000  # of one block of the resampling matrix: 32 MB
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Figure:
    """Sufficient statistics of one system on some rows, and the figure they add up to."""

    statistics: Array
    """What each of N rows adds to each of K sums; a row of zeros has nothing to say."""
    value: Value
    """From sums [..., K] to figures [...]."""
    top: float | None = None
    """What no figure is above; None if there is no such limit (perplexity)."""
    unit_N: NDArray[np.int64] | None = None
    """Number of each row's unit, of U: rows of one unit, such as parts of a text, are drawn together. None where each row is a unit."""
    least: float | None = None
    """What no figure is below; None where that is 0 if there is a top, and unknown otherwise."""

    @property
    def floor(self) -> float:
        """The end of the scale below."""
        return self.least if self.least is not None else 0.0 if self.top is not None else -math.inf

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.statistics) if self.unit_N is None else int(self.unit_N.max()) + 1

    @property
    def rows(self) -> int:
        """Number of units that say something."""
        return self._count(np.asarray(self.statistics.any(axis=1)))

    @property
    def point(self) -> float:
        """The figure over all rows."""
        return float(self.over(np.ones((1, self.units)))[0])

    @cached_property
    def _sums(self) -> Array:
        """What each unit adds, [U, K]."""
        if self.unit_N is None:
            return self.statistics
        sums_UK = np.zeros((self.units, self.statistics.shape[1]))
        np.add.at(sums_UK, self.unit_N, self.statistics)
        return sums_UK

    def _count(self, said_N: NDArray[np.bool_]) -> int:
        """Units of rows."""
        return int(said_N.sum()) if self.unit_N is None else len(np.unique(self.unit_N[said_N]))

    def gathered(self, weight_RU: Array) -> Array:
        """What units come to if they count so often, [R, K]: their sums."""
        return weight_RU @ self._sums

    def over(self, weight_RU: Array) -> Array:
        """The figure, [R], if units count so often."""
        return self.value(self.gathered(weight_RU))

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The same figure over some of the rows."""
        unit_N = None if self.unit_N is None else np.unique(self.unit_N[rows], return_inverse=True)[1]
        return replace(self, statistics=self.statistics[rows], unit_N=unit_N)

    def beside(self, other: Self) -> Self:
        """The same figure over this system's rows with another's behind them."""
        unit_N = None if self.unit_N is None else np.concatenate([self.unit_N, self.unit_N + self.units])
        return replace(self, statistics=np.concatenate([self.statistics, other.statistics]), unit_N=unit_N)


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; `n` is the number of rows, or units of them, that it rests on."""

    value: float
    low: float
    high: float
    """Ends; infinite where nothing is known of how far it may be off."""
    n: int

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON value, which has null for ends that are infinite."""
        ends = {
            name: entry if math.isfinite(entry) else None for name, entry in (("low", self.low), ("high", self.high))
        }
        return {**asdict(self), **ends}


@dataclass(frozen=True)
class Difference(Interval):
    """First minus second system on the same rows."""

    p: float
    """Two-sided p-value of the paired permutation test that the two are exchangeable on every row."""
    detectable: float | None
    """Smallest true difference that this test would have found four times in five; None where no row differed."""
    relative: Interval | None
    """First over second minus one, in percent; None where it was not wanted, or the second is zero."""

    def to_json(self) -> dict[str, Any]:
        """As of an interval."""
        told = super().to_json()
        del told["relative"]
        return told if self.relative is None else {**told, "relative": self.relative.to_json()}


def share(sums: Array) -> Array:
    """Percentage of the second sum that the first is: a ratio estimator; NaN where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100.0 * sums[..., 0] / sums[..., 1])


def replicates(figure: Figure, *, seed: int = SEED, resamples: int = RESAMPLES) -> Array:
    """The figure on each of `resamples` bootstrap samples of its rows, or of their units, [R].

    Samples depend on the seed and the number of units only, so systems on the same rows are resampled alike (paired).
    """
    count = figure.units
    drawn = _kept(seed, count, resamples) if count * resamples <= _CELLS else _drawn(seed, count, resamples)
    return np.concatenate([figure.over(counts_RN) for counts_RN in drawn])


def _drawn(seed: int, count: int, resamples: int) -> Iterator[Array]:
    """How often each row is in each bootstrap sample, [R, N], some samples at a time."""
    generator = np.random.default_rng(seed)
    for size in _blocks(resamples, count):
        drawn_RN = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn_RN.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


@lru_cache(maxsize=1)
def _kept(seed: int, count: int, resamples: int) -> list[Array]:
    """As `_drawn`, kept for the next figure on as many rows."""
    return list(_drawn(seed, count, resamples))


def interval(figure: Figure, *, seed: int = SEED, resamples: int = RESAMPLES) -> Interval:
    """95 % interval by the bias-corrected percentile bootstrap over rows (Efron 1981).

    Where all rows agree the bootstrap sees no spread; then the exact binomial limit on rows not seen takes its place. Of a single unit it never sees any:
    without an end to the scale nothing is known then.
    """
    point, rows, top = figure.point, figure.rows, figure.top
    if lone(rows, top):
        return Interval(point, -math.inf, math.inf, rows)
    low, high = ends(point, replicates(figure, seed=seed, resamples=resamples), rows)
    if top is not None and alike(low, high):
        low, high = unseen_ends(point, figure.floor, top, rows)
    return Interval(point, max(low, figure.floor), high if top is None else min(high, top), rows)


def difference(
    first: Figure, second: Figure, *, relative: bool = False, seed: int = SEED, resamples: int = RESAMPLES
) -> Difference:
    """First minus second on the same rows, resampled together; `relative` adds the percentage of change."""
    values = replicates(first, seed=seed, resamples=resamples)
    others = replicates(second, seed=seed, resamples=resamples)
    point, rows = first.point - second.point, max(first.rows, second.rows)
    nothing, alone = (-math.inf, math.inf), lone(rows, first.top)
    reach = nothing if alone else ends(point, values - others, rows)
    deviation = float(np.nanstd(values - others, ddof=1))
    if first.top is not None:
        most = first.top - first.floor
        equal = alike(*reach)
        reach = unseen_ends(point, -most, most, rows) if equal else (max(reach[0], -most), min(reach[1], most))
    change = None
    if relative and second.point > 0:
        ratio = 100.0 * (first.point / second.point - 1.0)
        low, high = nothing if alone else ends(ratio, 100.0 * (values / others - 1.0), rows)
        change = Interval(ratio, low if alone else max(low, -100.0), high, rows)
    p = permutation(first, second, seed=seed, resamples=resamples)
    seen = deviation > ROUNDING * max(1.0, abs(first.point), abs(second.point))
    return Difference(point, *reach, rows, p, detectable(deviation) if seen else None, change)


def lone(rows: int, top: float | None) -> bool:
    """Whether a figure rests on a single unit, on a scale without an end that would say how far off it may be."""
    return rows == 1 and top is None


def alike(low: float, high: float) -> bool:
    """Whether ends differ by rounding alone."""
    return math.isclose(low, high, rel_tol=ROUNDING, abs_tol=ROUNDING)


def permutation(first: Figure, second: Figure, *, seed: int = SEED, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of swapping the two outputs at random on each row; for right or wrong it is McNemar's test."""
    generator = np.random.default_rng(seed)
    observed = abs(first.point - second.point)
    both, count = first.beside(second), first.units
    as_extreme = 0
    for size in _blocks(resamples, count):
        swapped_RN = generator.integers(0, 2, size=(size, count), dtype=np.int8).astype(np.float64)
        firsts, seconds = (
            both.over(np.hstack(pair)) for pair in ((1 - swapped_RN, swapped_RN), (swapped_RN, 1 - swapped_RN))
        )
        as_extreme += int((np.abs(firsts - seconds) >= observed - 1e-9).sum())
    return (1 + as_extreme) / (1 + resamples)


def detectable(standard_error: float, *, power: float = POWER, confidence: float = CONFIDENCE) -> float:
    """Smallest true difference that a two-sided test finds with this power, given the difference's standard error."""
    return (_NORMAL.inv_cdf(0.5 + confidence / 2) + _NORMAL.inv_cdf(power)) * standard_error


def _blocks(resamples: int, count: int) -> Iterator[int]:
    """Sizes that add up to `resamples`, each small enough to hold in memory against `count` rows."""
    size = max(1, _CELLS // count)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
)  # fmt: skip
"""Student's t that 2.5 % exceed, with 1 to 28 degrees of freedom."""


def _few(units: int) -> float:
    """By how much the bootstrap of few things falls short: their spread by sqrt(U / (U - 1)), and its being unsure by Student's t over the normal."""
    if not 1 < units <= len(T_975) + 1:
        return 1.0
    return T_975[units - 2] / _NORMAL.inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(units / (units - 1))


def moved_apart(point: float, values: Array, units: int) -> Array:
    """Replicates moved away from the point by what those of few units fall short of."""
    factor = _few(units)
    return values if factor == 1.0 or not math.isfinite(point) else point + (values - point) * factor


def ends(point: float, values: Array, units: int = 0) -> tuple[float, float]:
    """Bias-corrected percentiles: where the point lies among its replicates shifts which of them are the ends. Those of few units are moved apart."""
    values = moved_apart(point, values[~np.isnan(values)], units)
    below = float(np.mean(values < point) + 0.5 * np.mean(values == point))
    shift = _NORMAL.inv_cdf(min(max(below, 1 / len(values)), 1 - 1 / len(values)))
    reach = _NORMAL.inv_cdf(0.5 + CONFIDENCE / 2)
    low, high = np.quantile(values, [_NORMAL.cdf(2 * shift - reach), _NORMAL.cdf(2 * shift + reach)])
    return min(float(low), point), max(float(high), point)


def unseen_ends(point: float, bottom: float, top: float, rows: int) -> tuple[float, float]:
    """Ends if all rows agree: at most `1 - 0.025 ** (1 / rows)` of all rows may disagree (Clopper, Pearson 1934)."""
    unseen = 1.0 - math.pow((1 - CONFIDENCE) / 2, 1 / rows)
    return point - unseen * (point - bottom), point + unseen * (top - point)
