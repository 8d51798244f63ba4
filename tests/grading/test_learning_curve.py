"""A curve through scores at a few sizes: known curves are found again, the band is as sure as it says, and rows to a target follow from it."""

import math

import numpy as np
import pytest

from tunesmith.grading.learning_curve import FORMS, LearningCurve, best_possible, by_seed, fit, held_out, resampled
from tunesmith.grading.perplexity import perplexity
from tunesmith.grading.seeds import over_seeds
from tunesmith.grading.statistics import Figure, replicates, share

SIZES = np.array([25, 50, 100, 200, 400, 800, 1600], dtype=np.float64)
SHORT = {
    "power law": lambda n: 8 + 120 * n**-0.6,
    "exponential": lambda n: 12 + 30 * np.exp(-n / 150),
    "Michaelis-Menten": lambda n: 10 + 40 * 100 / (n + 100),
}


def noisy(generator, true, error, resamples=40):
    value = true + generator.normal(0, error, len(true))
    return LearningCurve(SIZES, value, value + generator.normal(0, error, (resamples, len(true))), 100.0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_known_curve_is_found_again(form):
    short = SHORT[form.name](SIZES)
    found = fit(form, SIZES, short, np.ones(7))
    expected = {"power law": (8, 120, 0.6), "exponential": (12, 30, 150), "Michaelis-Menten": (10, 40, 100)}[form.name]
    assert (found.d, found.b, found.c) == pytest.approx(expected, rel=0.03)
    assert found(SIZES) == pytest.approx(short, abs=0.05)
    assert held_out(form, SIZES, short, np.ones(7)) < 0.2
    assert LearningCurve(SIZES, 100 - short, np.tile(100 - short, (3, 1)), 100.0).fit.form is form


def test_the_form_is_chosen_by_sizes_held_out():
    short, weights = SHORT["power law"](SIZES), np.ones(7)
    gaps = []
    for place in range(7):
        kept = np.arange(7) != place
        gaps.append(fit(FORMS[1], SIZES[kept], short[kept], weights[kept])(SIZES[place]) - short[place])
    ahead = [fit(FORMS[1], SIZES[:n], short[:n], weights[:n])(SIZES[n]) - short[n] for n in range(3, 7)]
    expected = math.sqrt((np.mean(np.square(gaps)) + np.mean(np.square(ahead))) / 2)
    assert held_out(FORMS[1], SIZES, short, weights) == pytest.approx(expected)
    assert held_out(FORMS[1], SIZES[:3], short[:3], weights[:3]) == math.inf


def test_more_rows_never_harm_and_no_score_is_beyond_the_best():
    falling, beyond = np.linspace(10, 30, 7), np.array([10, 3, 0.5, 0.1, 0, 0, 0.0])
    for form in FORMS:
        flat = fit(form, SIZES, falling, np.ones(7))
        assert flat.b == pytest.approx(0, abs=1e-9)
        assert flat.d == pytest.approx(20)
        assert fit(form, SIZES, beyond, np.ones(7)).d >= 0


def test_a_surer_score_counts_more():
    short = SHORT["power law"](SIZES) + np.array([0, 0, 0, 0, 0, 0, 6.0])
    sure, unsure = (fit(FORMS[0], SIZES, short, np.array([1, 1, 1, 1, 1, 1, weight])) for weight in (1.0, 0.1))
    assert abs(unsure(np.array(1600.0)) - SHORT["power law"](1600)) < abs(sure(np.array(1600.0)) - short[-1] + 6)


def test_the_band_holds_the_true_score_about_as_often_as_it_says_and_the_form_is_mostly_right():
    """Each form in turn; sizes of one curve err together, so that 95 % are not to be had exactly from a few."""
    generator, held, wide, right = np.random.default_rng(5), [], [], []
    places = np.append(SIZES, [3200.0, 16000.0])
    for name, short in [*SHORT.items()] * 10:
        curve = noisy(generator, 100 - short(SIZES), 0.7)
        low, high = curve.band(places)
        true = 100 - short(places)
        held.append((low <= true) & (true <= high))
        wide.append(high - low)
        right.append(curve.fit.form.name == name)
    assert np.mean(right) > 0.6
    assert 0.85 < np.mean(held) < 0.99
    assert np.mean(np.array(held)[:, -2:]) > 0.85  # beyond what was measured
    assert np.mean(wide, axis=0)[-2] < 6  # and it says something


def test_what_one_more_training_may_come_to_lies_wider_than_the_mean():
    true = 100 - SHORT["power law"](SIZES)
    of_mean = LearningCurve(SIZES, true, np.tile(true, (200, 1)), 100.0)
    several = [[figure(np.random.default_rng(n), rate) for rate in (0.5, 0.52, 0.54)] for n in range(5)]
    assert by_seed([each[:1] for each in several]) is None
    seed_R = by_seed(several, resamples=200)
    of_one = LearningCurve(SIZES, true, np.tile(true, (200, 1)), 100.0, seed_R)
    (low,), (high,) = of_one.band(np.array([800.0]))
    middle = of_mean.at(np.array(800.0))
    assert (low, high) == pytest.approx(middle + np.quantile(seed_R, [0.025, 0.975]), abs=0.2)
    assert of_one.band(np.array([1e6]))[1] <= 100


def test_the_band_holds_a_further_training_about_as_often_as_it_says():
    """Three trainings of each size, which lie far apart, and some of which were trained once."""
    generator, held = np.random.default_rng(8), []
    true, rows = 100 - SHORT["power law"](SIZES), np.arange(2_000)
    for _ in range(40):
        counts = (3, 3, 3, 3, 3, 3, 1)
        series = [
            [Figure(np.stack([rows < 20 * generator.normal(mean, 2.0), np.ones(2_000)], 1).astype(float), share, 100.0) for _ in range(count)]
            for mean, count in zip(true, counts, strict=True)
        ]  # fmt: skip
        value_K = np.array([np.mean([one.point for one in each]) for each in series])
        curve = LearningCurve(SIZES, value_K, resampled(series, resamples=80), 100.0, by_seed(series, resamples=80))
        (low,), (high,) = curve.band(np.array([1600.0]))
        held.append(np.mean((low <= (new := generator.normal(true[-1], 2.0, 200))) & (new <= high)))
    assert 0.85 < np.mean(held) < 0.99  # a little less than it says, of so few samples


def test_calibration_foretells_larger_sizes_from_smaller_ones_alone():
    generator = np.random.default_rng(0)
    curve = noisy(generator, 100 - SHORT["power law"](SIZES), 0.5, 30)
    found = curve.calibration()
    assert [(each["from"], each["size"]) for each in found[:4]] == [(100, 200), (100, 400), (100, 800), (100, 1600)]
    assert len(found) == 4 + 3 + 2 + 1
    assert sum(each["held"] for each in found) >= 8
    part = LearningCurve(SIZES[:6], curve.value_K[:6], curve.value_RK[:, :6], 100.0)
    assert found[-1]["foretold"] == pytest.approx(float(part.at(SIZES[6:])[0]))
    broken = LearningCurve(SIZES, np.append(curve.value_K[:6], 40.0), np.hstack([curve.value_RK[:, :6], np.full((30, 1), 40.0)]), 100.0)  # fmt: skip
    assert not any(each["held"] for each in broken.calibration() if each["size"] == 1600)


def test_rows_to_a_target_and_rows_that_are_enough():
    true = 100 - SHORT["power law"](SIZES)
    curve = LearningCurve(SIZES, true, np.tile(true, (3, 1)), 100.0)
    assert curve.reaching(91).value == pytest.approx(120 ** (1 / 0.6), rel=0.05)  # where 120 n^-0.6 is 1
    assert curve.reaching(95).value is None
    assert curve.reaching(101).value is None  # beyond the best possible score
    assert curve.reaching(10).value == 25
    gain = 120 * (1 - 2**-0.6)  # of a doubling from n: that, times n^-0.6
    assert curve.enough(1.0).value == pytest.approx(gain ** (1 / 0.6), rel=0.05)
    assert curve.enough(50.0).value == 25
    found = curve.enough(1.0)
    assert found.low <= found.value <= found.high


def test_a_score_that_should_be_low_is_turned_round():
    true = 5 + 60 * SIZES**-0.5
    curve = LearningCurve(SIZES, true, np.tile(true, (3, 1)), 0.0, lower=True)
    assert curve.at(np.array([6400.0])) == pytest.approx([5 + 60 / 80], abs=0.05)
    assert curve.reaching(6.0).value == pytest.approx(3600, rel=0.05)


def figure(generator, rate, rows=300):
    return Figure(np.stack([generator.random(rows) < rate, np.ones(rows)], 1).astype(float), share, 100.0)


def test_scores_are_resampled_over_rows_and_trainings():
    """To what rows say comes the standard error of a mean over trainings; the interval of few trainings is wider, since it does not take their spread for known."""
    generator = np.random.default_rng(0)
    each = [[figure(generator, rate) for rate in rates] for rates in ((0.2, 0.5, 0.8), (0.6, 0.6, 0.6))]
    found = resampled(each, resamples=4000)
    for column, figures in zip(found.T, each, strict=True):
        points = [one.point for one in figures]
        by_rows = np.mean([replicates(one) for one in figures], axis=0).std()
        assert column.mean() == pytest.approx(np.mean(points), abs=0.6)
        known = math.hypot(by_rows, np.std(points, ddof=1) / math.sqrt(3))
        assert 0.95 < column.std() / known < 1.4  # a training's luck with single rows is in both
        assert over_seeds(figures).high - over_seeds(figures).low > 3.8 * known


def test_a_size_trained_once_is_as_unsure_of_its_seed_as_the_nearest_that_was_not():
    generator = np.random.default_rng(0)
    several, once = [figure(generator, rate) for rate in (0.3, 0.5, 0.7)], [figure(generator, 0.6)]
    alone, beside = resampled([once], resamples=2000).std(), resampled([several, once], resamples=2000)[:, 1].std()
    points = [100 * each.statistics[:, 0].mean() for each in several]
    assert beside == pytest.approx(math.hypot(alone, np.std(points, ddof=1)), rel=0.1)


def test_no_perplexity_below_one_is_foretold():
    """Scores that fall to 1 as a power of the rows, and some that fall straight past it."""
    generator = np.random.default_rng(4)
    for value in (1 + 2 * SIZES**-0.5, np.linspace(1.9, 1.05, 7)):
        curve = LearningCurve(SIZES, value, value + generator.normal(0, 0.01, (100, 7)), 1.0, lower=True)
        far = SIZES[-1] * np.array([2.0, 10.0, 100.0])
        low, high = curve.band(far)
        assert (curve.at(far) >= 1).all()
        assert ((low >= 1) & (low <= high)).all()
        assert curve.at(SIZES[:1]) > curve.at(SIZES[-1:])
        assert curve.reaching(0.9).value is None


def test_the_best_score_is_the_end_of_its_scale():
    sums = np.ones((3, 2))
    assert best_possible(Figure(sums, perplexity, least=1.0), "lower") == 1.0
    assert best_possible(Figure(sums, share, 100.0), "higher") == 100.0
    assert best_possible(Figure(sums, share), "lower") is None
