"""Intervals over seeds: what they promise must hold in simulations, of systems alone and of many together."""

import math

import numpy as np
import pytest
from scipy import stats

from tunesmith.grading.perplexity import perplexity
from tunesmith.grading.seeds import Spread, between, moderated, of_groups, over_seeds, residuals, spread, together
from tunesmith.grading.statistics import Figure, interval, share


def binary(hits: np.ndarray) -> Figure:
    return Figure(np.stack([hits, np.ones(len(hits))], axis=1).astype(float), share, top=100.0)


def trainings(seeds: int, apart: float, generator: np.random.Generator) -> list[Figure]:
    """So many trainings graded on the same 150 rows; their quality differs by `apart` on the scale of logits."""
    rows = generator.normal(0, 1, 150)
    chances = [1 / (1 + np.exp(-(rows + generator.normal(0.5, apart)))) for _ in range(seeds)]
    return [binary(generator.random(150) < chance) for chance in chances]


def test_intervals_over_seeds_cover_what_another_seed_on_other_rows_would_give() -> None:
    generator = np.random.default_rng(5)
    truth = 100 * np.mean(1 / (1 + np.exp(-generator.normal(0.5, np.hypot(1, 0.3), 200_000))))
    for seeds in (3, 5):
        found = [over_seeds(trainings(seeds, 0.3, generator), resamples=300) for _ in range(150)]
        assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.92
    rows_alone = [interval(trainings(1, 0.6, generator)[0], resamples=300) for _ in range(150)]
    assert np.mean([each.low <= truth <= each.high for each in rows_alone]) < 0.75  # one training cannot know of others


def test_few_seeds_say_little_of_how_far_seeds_lie_apart() -> None:
    """Rows tell nothing here: all trainings are right on so many of 1,000 rows, and only that number differs."""
    generator, rows = np.random.default_rng(6), np.arange(1000)
    for seeds in (2, 3):
        found = []
        for _ in range(200):
            better, worse = ([binary(rows < 10 * generator.normal(mean, 5)) for _ in range(seeds)] for mean in (60, 50))
            found.append(over_seeds(better, worse, resamples=400))
        assert np.mean([each.low <= 10 <= each.high for each in found]) >= 0.91


def test_a_group_of_one_training_is_as_unsure_as_the_others_say() -> None:
    generator = np.random.default_rng(9)
    groups = [list(generator.normal(50, 4, 3)) for _ in range(6)]
    alone, *others = of_groups([[50.0], *groups])
    known = spread(groups)
    assert alone is not None
    assert known is not None
    assert alone.deviation == pytest.approx(known.deviation, rel=0.3)
    assert all(one and alone.freedom <= one.freedom <= known.freedom for one in others)
    assert of_groups([[50.0], [60.0]]) == [None, None]
    assert of_groups([[50.0], groups[0]]) == [spread(groups[:1])] * 2
    assert of_groups([[math.nan, 1.0], groups[0]])[1] == spread(groups[:1])  # a score of classes may have no value


def test_trainings_of_several_groups_tell_together_how_far_seeds_lie_apart() -> None:
    generator, rows = np.random.default_rng(7), np.arange(1000)
    found, widths = [], []
    for _ in range(150):
        groups = [[binary(rows < 10 * generator.normal(mean, 5)) for _ in range(2)] for mean in (30, 40, 50, 60, 70)]
        known = spread([one.point for one in group] for group in groups)
        assert known is not None
        assert known.freedom == 5
        one = over_seeds(groups[2], apart=known, resamples=400)
        found.append(one.low <= 50 <= one.high)
        widths.append(
            (one.high - one.low)
            / np.ptp([over_seeds(groups[2], resamples=400).low, over_seeds(groups[2], resamples=400).high])
        )
        single = over_seeds(groups[2][:1], apart=known, resamples=400)
        assert single.high - single.low > one.high - one.low
    assert np.mean(found) >= 0.9
    assert np.median(widths) < 0.8
    assert spread([[1.0], [2.0]]) is None
    assert spread([[1.0, 3.0], [2.0, 2.0]]).deviation == 1.0


def test_differences_from_one_baseline_are_told_from_what_seeds_do_to_single_variants() -> None:
    """All variants have the baseline's luck in common: it must not pass for as many observations as there are variants."""
    generator, rows, found = np.random.default_rng(8), np.arange(1000), []
    for _ in range(300):
        shared = generator.normal(0, 5, 2)  # of the seeds, for all alike
        groups = [
            [binary(rows < 10 * (mean + luck + generator.normal(0, 3))) for luck in shared]
            for mean in (40, 50, 55, 60, 45, 50)
        ]
        known = between(np.array([[one.point for one in group] for group in groups]))
        one = over_seeds(groups[1], groups[0], apart=known, resamples=400)
        found.append(one.low <= 10 <= one.high)
    assert known is not None
    assert known.freedom == 5
    assert 0.91 <= np.mean(found) <= 0.985
    assert between(np.array([[1.0, 2.0]])) is None
    exact = between(np.array([[0.0, 6.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    assert exact is not None
    assert exact.deviation == pytest.approx(3.0)


def test_rows_that_all_agree_leave_what_was_not_seen_open() -> None:
    right = [binary(np.arange(30) < 30) for _ in range(3)]
    known = spread([[100.0, 100.0, 100.0], [93.0, 97.0, 100.0]])
    assert over_seeds(right, apart=known).low <= over_seeds(right).low == pytest.approx(interval(right[0]).low)


def test_no_interval_over_seeds_reaches_beyond_what_a_score_can_be() -> None:
    figures = [binary(np.arange(100) < right) for right in (100, 100, 94)]
    none = [binary(np.arange(100) < right) for right in (0, 0, 6)]
    assert over_seeds(figures).high == 100
    assert over_seeds(none).low == 0
    assert over_seeds(figures, none).high == 100


def test_differences_over_seeds_are_paired() -> None:
    """Trainings of widely different luck that the other system shares: the difference knows nothing of it."""
    generator = np.random.default_rng(6)
    worse = [binary(np.arange(100) < right) for right in (30, 50, 70)]
    better = [binary(np.arange(100) < right + 5) for right in (30, 50, 70)]
    found, alone = over_seeds(better, worse), over_seeds(better)
    assert (found.value, alone.value) == (5, 55)
    assert alone.high - alone.low > 30
    assert found.high - found.low < 10
    one = trainings(1, 0.0, generator)
    assert over_seeds(one) == interval(one[0])


def test_moderated_spreads_hold_for_the_steady_and_for_the_unsteady() -> None:
    """Forty systems of three trainings each, a fifth of which seeds throw far more about: pooled, those are promised too much and the others too little."""
    generator, apart = np.random.default_rng(0), np.array([1.0] * 32 + [5.0] * 8)
    inside: dict[str, list[np.ndarray]] = {"moderated": [], "pooled": []}
    widths: dict[str, list[np.ndarray]] = {"moderated": [], "pooled": []}
    for _ in range(400):
        points = generator.normal(0, apart[:, None], (40, 3))
        alone = [Spread(float(each.std(ddof=1)), 2) for each in points]
        pooled = spread(points)
        for name, found in (("moderated", moderated(alone)), ("pooled", [pooled] * 40)):
            freedom, deviation = np.array([(one.freedom, one.deviation) for one in found]).T
            reach = stats.t.ppf(0.975, freedom) * deviation / math.sqrt(3)
            inside[name].append(np.abs(points.mean(1)) <= reach)
            widths[name].append(reach)
    held = {name: np.mean(each, axis=0) for name, each in inside.items()}
    assert 0.93 <= held["moderated"].mean() <= 0.975
    assert held["moderated"][32:].mean() > 0.8 > held["pooled"][32:].mean()
    assert np.median(widths["moderated"]) < 0.75 * np.median(widths["pooled"])
    lone = [stats.t(2).ppf(0.975) * one / math.sqrt(3) for one in apart]
    assert np.median(widths["moderated"]) < 0.75 * np.median(lone)


def test_spreads_that_differ_by_chance_alone_are_pooled() -> None:
    generator = np.random.default_rng(3)
    points = generator.normal(0, 2.0, (200, 4))
    found = moderated([Spread(float(each.std(ddof=1)), 3) for each in points])
    assert {round(one.deviation, 1) for one in found} == {2.0}
    assert min(one.freedom for one in found) > 60
    single = moderated([*(Spread(float(each.std(ddof=1)), 3) for each in points), Spread(0.0, 0)])[-1]
    assert single.deviation == pytest.approx(2.0, abs=0.1)
    assert single.freedom > 50
    alone = [Spread(1.0, 2), Spread(0.0, 2)]
    assert moderated(alone) == alone
    assert moderated([Spread(0.0, 2), Spread(1.0, 2), Spread(1.1, 2)])[0].deviation == pytest.approx(1.05, abs=0.01)


def test_residuals_leave_out_what_a_seed_does_to_all() -> None:
    generator, apart = np.random.default_rng(4), np.array([0.5] * 30 + [4.0] * 10)
    found = []
    for _ in range(100):
        points = generator.normal(0, 10, 3) + generator.normal(0, apart[:, None], (40, 3))
        found.append([one.deviation**2 for one in residuals(points)])
    middle = np.mean(found, axis=0)
    assert middle[30:].mean() == pytest.approx(16, rel=0.1)
    assert 0.25 < middle[:30].mean() < 0.45  # a little of the others' is left in the means that are taken off


def test_a_difference_rests_on_what_its_two_sides_rest_on() -> None:
    assert together(Spread(3.0, 10), Spread(4.0, 10)).deviation == pytest.approx(5.0)
    assert together(Spread(3.0, 10), Spread(3.0, 10)).freedom == pytest.approx(20)
    assert together(Spread(3.0, 10), Spread(0.0, 2)).freedom == pytest.approx(10)
    assert together(Spread(0.0, 2), Spread(0.0, 2)) == Spread(0.0, 4)


def test_of_one_text_nothing_is_known_whatever_seeds_say() -> None:
    texts = [Figure(np.array([[loss, 10.0]]), perplexity, least=1.0) for loss in (12.0, 13.0, 15.0, 11.0)]
    for found in (over_seeds(texts[:2]), over_seeds(texts[:2], texts[2:])):
        assert (found.low, found.high, found.n) == (-math.inf, math.inf, 1)


def test_differences_of_what_may_be_negative_reach_twice_as_far() -> None:
    right, wrong = (
        [
            Figure(binary(np.arange(20) < hits).statistics, lambda sums: 2 * share(sums) - 100, 100.0, least=-100.0)
            for hits in both
        ]
        for both in ((20, 20), (0, 0))
    )
    found = over_seeds(right, wrong)
    assert 100 < found.low < found.value == found.high == 200
