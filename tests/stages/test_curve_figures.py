"""Figures of a data curve: what is known of seeds is shared among sizes, and not counted twice."""

import numpy as np
import pytest
from scipy import stats

from tunesmith.grading.statistics import Figure, share
from tunesmith.stages.curve.figures import _against, _gained, _values

ROWS = 2000
SIZES = (25, 50, 100, 200)


def training(percent: float) -> Figure:
    """Right on the first so many of the rows, which all trainings agree about."""
    return Figure(np.stack([np.arange(ROWS) < ROWS * percent / 100, np.ones(ROWS)], axis=1).astype(float), share, 100.0)


def series(*scores: tuple[float, ...]) -> list[list[Figure]]:
    return [[training(score) for score in each] for each in scores]


def width(found: dict) -> float:
    return found["high"] - found["low"]


def test_a_size_trained_once_is_no_surer_than_those_trained_more_often():
    tuned = series((40, 44, 48), (50, 54, 58), (60, 64, 68), (70,))
    *several, once = _values(tuned)
    (alone,) = _values(tuned[-1:])
    assert width(once) > 1.5 * max(width(each) for each in several)  # a mean of three is surer than one
    assert width(alone) < 5  # where nothing is known of seeds, rows are all there is
    base = [[training(30)] * len(each) for each in tuned]
    assert width(_against(tuned, base)[-1]) > 10
    assert width(_against(tuned[-1:], base[-1:])[0]) < 5


def test_a_size_whose_trainings_score_alike_lends_no_certainty():
    """As of a class that is never right with few rows."""
    lent, given = (_values(series(each, (3, 1, 5), (4,)))[-1] for each in ((0, 0, 0), (0, 2, 4)))
    assert width(lent) > 0.8 * width(given)


def test_what_two_sizes_tell_of_each_other_is_not_told_twice():
    """Four sizes of two trainings, as far apart everywhere: four degrees of freedom, whichever two sizes are compared."""
    tuned = series((40, 46), (50, 56), (60, 66), (70, 76))
    found = _gained(SIZES, tuned)
    deviation = np.std([40, 46], ddof=1)
    reach = stats.t.ppf(0.975, 4) * deviation * np.sqrt(2) / np.sqrt(2)
    assert (found["from"], found["to"]) == (100, 200)
    assert width(found) == pytest.approx(2 * reach, rel=0.12)
    assert found["value"] == pytest.approx(10)
