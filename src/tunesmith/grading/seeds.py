"""Intervals over trainings that differ in their seed, and how far such trainings lie apart, of one system or of many together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import (
    RESAMPLES,
    SEED,
    Array,
    Figure,
    Interval,
    alike,
    ends,
    lone,
    moved_apart,
    replicates,
    unseen_ends,
)


@dataclass(frozen=True)
class Spread:
    """How far trainings that differ in their seed alone lie apart, and on how much that rests."""

    deviation: float
    freedom: float
    """Trainings beyond the first of each group."""


def spread(groups: Iterable[Sequence[float] | Array]) -> Spread | None:
    """Of groups of trainings together, each around its own mean (the pooled variance of an analysis of variance); None where no group has two.

    It takes seeds to matter alike in all groups: a few trainings of each then tell of each what they tell together.

    Args:
        groups: scores, or differences of scores, of trainings that differ in their seed.
    """
    found = [np.array(group) for group in groups]
    freedom = sum(len(group) - 1 for group in found)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in found)
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


def between(point_VS: Array) -> Spread | None:
    """How far differences of two of V variants lie apart that were trained with the same S seeds, [V, S]; None where that cannot be told.

    What a seed does to all variants alike makes no difference: what is left is the residual of a two-way analysis of variance, and a difference has twice its variance.
    """
    freedom = (point_VS.shape[0] - 1) * (point_VS.shape[1] - 1)
    rest_VS = point_VS - point_VS.mean(0) - point_VS.mean(1, keepdims=True) + point_VS.mean()
    return Spread(math.sqrt(2 * float((rest_VS**2).sum()) / freedom), freedom) if freedom else None


def moderated(spreads: Sequence[Spread]) -> list[Spread]:
    """Each of many spreads drawn towards what all tell: a few trainings of each tell little of it, and all need not be alike.

    Empirical Bayes (Smyth, 2004, doi:10.2202/1544-6115.1027, section 6.2): variances are scaled inverse chi-squares about one, whose place and freedom come from the
    mean and the variance of the variances' logarithms. Where these differ by chance alone, all get the pooled one. A spread of nothing at all, that of scores at the
    end of their scale or of a single training (freedom 0), tells nothing of the others'. Intervals hold as often as they say in the mean over systems; of those that
    lie far further apart than most they hold less often.
    """
    from scipy.special import digamma, polygamma

    told = [one for one in spreads if one.deviation > 0]
    most = sum(one.freedom for one in told)
    if len(told) < 2:
        return list(spreads)
    half = np.array([one.freedom for one in told]) / 2
    logs = 2 * np.log([one.deviation for one in told]) - digamma(half) + np.log(half)
    rest = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if rest <= 0:
        square = sum(one.freedom * one.deviation**2 for one in told) / most
        return [Spread(math.sqrt(square), most) for _ in spreads]
    prior = 2 * _trigamma_inverse(rest)
    square = math.exp(float(logs.mean()) + float(digamma(prior / 2)) - math.log(prior / 2))
    squares = [(prior * square + one.freedom * one.deviation**2) / (prior + one.freedom) for one in spreads]
    return [Spread(math.sqrt(each), min(prior + one.freedom, most)) for each, one in zip(squares, spreads, strict=True)]


def of_groups(groups: Sequence[Sequence[float] | Array]) -> list[Spread | None]:
    """How far trainings of each group lie apart, each drawn towards what all tell (`moderated`): of a single training it is that alone, and None where none has two.

    Args:
        groups: scores, or differences of scores, of trainings that differ in their seed.
    """
    unknown = Spread(0.0, 0.0)
    found = moderated([(spread([one]) if np.isfinite(one).all() else None) or unknown for one in groups])
    told = max((one for one in found if one.freedom), key=lambda one: one.deviation, default=None)
    return [one if one.freedom else told for one in found]


def _trigamma_inverse(value: float) -> float:
    """Newton's method on the reciprocal, which is convex (Smyth, appendix)."""
    from scipy.special import polygamma

    found = 0.5 + 1 / value
    for _ in range(50):
        now = float(polygamma(1, found))
        step = now * (1 - now / value) / float(polygamma(2, found))
        found += step
        if -step < 1e-8 * found:
            break
    return found


def residuals(point_VS: Array) -> list[Spread]:
    """How far each of V > 1 variants' trainings with the same S > 1 seeds lie apart, [V, S], once what a seed does to all alike is taken off."""
    variants, seeds = point_VS.shape
    rest_VS = point_VS - point_VS.mean(0) - point_VS.mean(1, keepdims=True) + point_VS.mean()
    square_V = (rest_VS**2).sum(1) / ((seeds - 1) * (1 - 1 / variants))
    return [Spread(math.sqrt(float(square)), seeds - 1) for square in square_V]


def together(first: Spread, second: Spread) -> Spread:
    """Of the difference of two (Welch and Satterthwaite)."""
    one, other = first.deviation**2, second.deviation**2
    if not one + other:
        return Spread(0.0, first.freedom + second.freedom)
    freedom = (one + other) ** 2 / (one**2 / first.freedom + other**2 / second.freedom)
    return Spread(math.sqrt(one + other), freedom)


def over_seeds(
    figures: Sequence[Figure],
    others: Sequence[Figure] = (),
    *,
    apart: Spread | None = None,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of one system's figures over trainings that differ in their seed, or of its differences from another's.

    Rows are resampled alike for all, and to each resample is added what another set of S seeds may differ by: their standard error times a draw of Student's
    t with as many degrees of freedom as that error rests on. Two or three trainings say little of how far trainings lie apart, and their interval is as wide as that.
    Of a single unit of rows there is none, as in `interval`.

    Args:
        figures: one per training, all on the same rows.
        others: those of the system to be subtracted, by the same seeds; none for the figure itself.
        apart: how far trainings lie apart, if more is known of it than these tell; one training alone has an interval over rows otherwise.
        seed: of the bootstrap.
        resamples: how often.
    """
    points_S = np.array([figure.point for figure in figures])
    values_SR = np.stack([replicates(figure, seed=seed, resamples=resamples) for figure in figures])
    if others:
        points_S = points_S - [other.point for other in others]
        values_SR = values_SR - [replicates(other, seed=seed, resamples=resamples) for other in others]
    point, count = float(points_S.mean()), len(points_S)
    values_R = values_SR.mean(axis=0)
    rows, (least, top) = max(figure.rows for figure in (*figures, *others)), _scale(figures[0], bool(others))
    if lone(rows, top):
        return Interval(point, -math.inf, math.inf, rows)
    by_rows, values_R = ends(point, values_R), moved_apart(point, values_R, rows)
    known = apart or (Spread(float(points_S.std(ddof=1)), count - 1) if count > 1 else None)
    if known:
        drawn_R = np.random.default_rng([seed, count]).standard_t(known.freedom, size=resamples)
        values_R = values_R + drawn_R * known.deviation / math.sqrt(count)
    low, high = ends(point, values_R)
    low = max(low, least)
    if top is not None:
        high = min(high, top)
        if alike(*by_rows):
            unseen = unseen_ends(point, least, top, rows)
            low, high = min(low, unseen[0]), max(high, unseen[1])
    return Interval(point, low, high, rows)


def _scale(figure: Figure, subtracted: bool) -> tuple[float, float | None]:
    """Least and most that such a figure can be, or one less another: of two one may be at one end of the scale, and one at the other."""
    if not subtracted:
        return figure.floor, figure.top
    return (-math.inf, None) if figure.top is None else (figure.floor - figure.top, figure.top - figure.floor)
