"""What a curve through the measured sizes says of those that were not: more rows, a target, what labelling them costs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.grading import Figure, Grader
from tunesmith.grading.learning_curve import (
    FARTHEST,
    FEWEST,
    RESAMPLES,
    LearningCurve,
    Rows,
    best_possible,
    by_seed,
    resampled,
)
from tunesmith.grading.statistics import Array

from .settings import Curve

TIMES = (2, 10)
"""Multiples of the largest size that is measured, of which the score is foretold."""
DRAWN = 60
"""Places at which the curve is drawn."""


def forecast(
    grader: Grader, sizes: Sequence[int], series: Sequence[Sequence[Figure]], labelled: int, spec: Curve
) -> dict[str, Any]:
    """What the headline foretells, or the `reason` why it foretells nothing.

    Args:
        grader: whose headline it is.
        sizes: rows learnt from, ascending, without 0.
        series: per size one figure per training.
        labelled: rows there are, whether they are learnt from or not; what is beyond them must be labelled.
        spec: what is wanted.
    """
    best, value_RK = best_possible(series[0][0], grader.better), resampled(series)
    drawn = [
        each for size, each in zip(sizes, series, strict=True) if size < labelled
    ]  # of all rows each seed draws the same
    seed_R = by_seed(drawn if any(len(each) > 1 for each in drawn) else series)
    known_R = np.isfinite(value_RK).all(axis=1)  # a score of classes has no value on rows that hold none
    value_RK, seed_R = value_RK[known_R], None if seed_R is None else seed_R[known_R]
    units = max(one.rows for each in series for one in each)
    if reason := _silent(grader, sizes, best, value_RK, units):
        return {"reason": reason}
    assert best is not None
    value_K = np.array([np.mean([one.point for one in each]) for each in series])
    lower = grader.better == "lower"
    curve = LearningCurve(np.array(sizes, dtype=np.float64), value_K, value_RK, best, seed_R, lower)
    fit, known, held = curve.fit, len(sizes) > FEWEST, curve.calibration()
    return {
        "grader": grader.called, "unit": grader.unit, "better": grader.better, "digits": grader.digits, "resamples": len(value_RK),
        "form": fit.form.name, "formula": fit.form.formula, "d": fit.d, "b": fit.b, "c": fit.c, "best": best,
        "errors": curve.errors if known else None,
        "forms": dict(Counter(one.form.name for one in curve.fits)),
        "calibration": {"held": sum(each["held"] for each in held), "of": len(held), "points": held},
        "at": [_at(curve, times * sizes[-1], labelled, spec) | {"times": times} for times in TIMES],
        "target": _target(curve, grader, labelled, spec),
        "enough": {"least_gain": spec.least_gain, **_needed(curve.enough(spec.least_gain), labelled, spec)},
        "asked_up_to": FARTHEST * sizes[-1],
        "line": _line(curve),
    }  # fmt: skip


def _silent(grader: Grader, sizes: Sequence[int], best: float | None, value_RK: Array, units: int) -> str:
    """Why nothing can be foretold; empty if something can."""
    if len(sizes) < FEWEST:
        return f"{len(sizes)} sizes are too few for a curve; measure {FEWEST} or more, besides 0"
    if best is None:
        return f"{grader.called} has no best possible score to fall short of"
    if units == 1:
        return "the test rows count as one, which does not tell how others would do; hold out more texts, or rows of more groups"
    if len(value_RK) < RESAMPLES / 2:
        return f"{grader.called} has no value on most samples of the test rows; hold out more rows of each class"
    if not np.ptp(value_RK):
        return "every size scores the same on any test rows; there is no curve"
    return ""


def _at(curve: LearningCurve, rows: int, labelled: int, spec: Curve) -> dict[str, Any]:
    size = np.array([float(rows)])
    low, high = curve.band(size)
    found = {"rows": rows, "value": float(curve.at(size)[0]), "low": float(low[0]), "high": float(high[0])}
    return {**found, **_cost(rows, labelled, spec)}


def _target(curve: LearningCurve, grader: Grader, labelled: int, spec: Curve) -> dict[str, Any] | None:
    if spec.target is None:
        return None
    percent = grader.unit.startswith("%") and spec.target <= 1
    value = 100 * spec.target if percent else spec.target
    return {"score": value, **_needed(curve.reaching(value), labelled, spec)}


def _needed(rows: Rows, labelled: int, spec: Curve) -> dict[str, Any]:
    """A number of rows, and what is missing to it."""
    return {"rows": rows.value, "low": rows.low, "high": rows.high, **_cost(rows.value, labelled, spec)}


def _cost(rows: int | None, labelled: int, spec: Curve) -> dict[str, Any]:
    more = None if rows is None else max(0, rows - labelled)
    return {"more": more, "cost": None if more is None or spec.price is None else round(more * spec.price, 2)}


def _line(curve: LearningCurve) -> list[dict[str, float]]:
    """The curve and its band, from the smallest size to the largest that is foretold."""
    size = np.geomspace(curve.size_K[0], TIMES[-1] * curve.size_K[-1], DRAWN)
    columns = zip(size, curve.at(size), *curve.band(size), strict=True)
    return [dict(zip(("size", "value", "low", "high"), map(float, each), strict=True)) for each in columns]
