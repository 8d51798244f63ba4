"""Intervals cover as often as they say, differences agree with closed forms and with scipy."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tunesmith.grading.perplexity import perplexity
from tunesmith.grading.statistics import (
    Figure,
    detectable,
    difference,
    interval,
    permutation,
    replicates,
    share,
)

CHEAP = 600


def binary(hits: np.ndarray) -> Figure:
    return Figure(np.stack([hits, np.ones_like(hits)], axis=1).astype(float), share, top=100.0)


def test_interval_agrees_with_scipy_on_a_ratio() -> None:
    generator = np.random.default_rng(3)
    total = generator.integers(1, 6, 150).astype(float)
    hits = generator.binomial(total.astype(int), 0.7).astype(float)
    ours = interval(Figure(np.stack([hits, total], axis=1), share, top=100.0))
    theirs = stats.bootstrap(
        (hits, total), lambda a, b, axis: 100 * a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
        n_resamples=4000, method="BCa", rng=np.random.default_rng(4),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.8)
    assert ours.value == pytest.approx(100 * hits.sum() / total.sum())
    assert ours.n == 150


@pytest.mark.parametrize(("rows", "chance"), [(60, 0.6), (200, 0.85)])
def test_intervals_of_a_ratio_cover(rows: int, chance: float) -> None:
    generator = np.random.default_rng(rows)
    covered, trials = 0, 400
    for trial in range(trials):
        total = generator.integers(1, 6, rows)
        hits = generator.binomial(total, chance)
        found = interval(
            Figure(np.stack([hits, total], axis=1).astype(float), share, 100.0), seed=trial, resamples=CHEAP
        )
        covered += found.low <= 100 * chance <= found.high
    assert 0.92 <= covered / trials <= 0.98


def test_intervals_of_perplexity_cover() -> None:
    generator = np.random.default_rng(5)
    covered, trials, mean = 0, 400, 1.5
    for trial in range(trials):
        tokens = generator.integers(5, 30, 100)
        loss = generator.gamma(tokens * mean / 0.8, 0.8)
        found = interval(Figure(np.stack([loss, tokens], axis=1), perplexity), seed=trial, resamples=CHEAP)
        covered += found.low <= np.exp(mean) <= found.high
    assert 0.92 <= covered / trials <= 0.98


def test_intervals_of_a_paired_difference_cover_and_its_power_is_what_it_says() -> None:
    generator = np.random.default_rng(6)
    rows, trials, chances = 150, 300, [0.55, 0.15, 0.05, 0.25]  # both right, only the first, only the second, neither
    true = 100 * (chances[1] - chances[2])
    limits: list[float] = []
    covered, found_it = 0, 0
    for trial in range(trials):
        kind = generator.choice(4, rows, p=chances)
        found = difference(binary(kind <= 1), binary(kind % 2 == 0), seed=trial, resamples=CHEAP)
        covered += found.low <= true <= found.high
        limits.append(found.detectable or 0.0)
        found_it += found.low > 0
    assert 0.92 <= covered / trials <= 0.98
    error = 100 * np.sqrt((chances[1] + chances[2] - (chances[1] - chances[2]) ** 2) / rows)
    assert np.mean(limits) == pytest.approx(detectable(error), rel=0.03)
    power = stats.norm.sf(1.959964 - true / error)
    assert found_it / trials == pytest.approx(power, abs=0.08)


def test_detectable_is_the_closed_form() -> None:
    assert detectable(1.0) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    generator = np.random.default_rng(7)
    first, second = generator.random(400) < 0.7, generator.random(400) < 0.6
    gaps = 100.0 * (first.astype(float) - second)
    found = difference(binary(first), binary(second))
    assert found.detectable == pytest.approx(detectable(gaps.std(ddof=1) / np.sqrt(400)), rel=0.03)


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(8)
    second = generator.random(300) < 0.6
    first = second | (generator.random(300) < 0.1)
    found = difference(binary(first), binary(second))
    alone = interval(binary(first))
    assert found.low > 0
    assert found.high - found.low < alone.high - alone.low


@pytest.mark.parametrize(("only_first", "only_second"), [(18, 5), (10, 10), (9, 3), (4, 0)])
def test_the_permutation_test_is_mcnemars_for_right_or_wrong(only_first: int, only_second: int) -> None:
    first = np.array([True] * (30 + only_first) + [False] * (20 + only_second))
    second = np.array([True] * 30 + [False] * (only_first + 20) + [True] * only_second)
    exact = stats.binomtest(only_first, only_first + only_second).pvalue
    assert permutation(binary(first), binary(second)) == pytest.approx(exact, abs=0.02)


def test_the_permutation_test_agrees_with_scipy_on_ratios() -> None:
    generator = np.random.default_rng(9)
    total = generator.integers(1, 6, 80)
    first, second = generator.binomial(total, 0.68), generator.binomial(total, 0.6)
    expected = stats.permutation_test(
        (first, second), lambda a, b, axis: a.sum(axis) - b.sum(axis), permutation_type="samples", vectorized=True,
        n_resamples=4000, rng=np.random.default_rng(10),
    ).pvalue  # fmt: skip
    figures = [Figure(np.stack([hits, total], axis=1).astype(float), share, 100.0) for hits in (first, second)]
    assert permutation(*figures) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("rows", [1, 10, 300])
def test_agreement_of_all_rows_is_not_certainty(rows: int) -> None:
    all_right, all_wrong = interval(binary(np.ones(rows))), interval(binary(np.zeros(rows)))
    exact = stats.binomtest(rows, rows).proportion_ci(method="exact")
    assert (all_right.low, all_right.high) == pytest.approx((100 * exact.low, 100.0))
    assert (all_wrong.low, all_wrong.high) == pytest.approx((0.0, 100 - 100 * exact.low))
    same = difference(binary(np.ones(rows)), binary(np.ones(rows)))
    assert same.low < 0 < same.high
    assert (same.p, same.detectable) == (1.0, None)


def test_the_relative_rise_of_perplexity_is_paired() -> None:
    generator = np.random.default_rng(11)
    tokens = generator.integers(10, 50, 120)
    base = generator.gamma(tokens * 2.0)
    tuned = base + 0.03 * tokens
    figures = [Figure(np.stack([loss, tokens], axis=1), perplexity) for loss in (tuned, base)]
    rise = difference(*figures, relative=True).relative
    assert rise is not None
    assert (rise.value, rise.low, rise.high) == pytest.approx((100 * np.expm1(0.03),) * 3)


def test_a_seed_decides_everything_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(12)
    figure = binary(generator.random(50) < 0.5)
    whole = replicates(figure, seed=3, resamples=100)
    assert (whole == replicates(figure, seed=3, resamples=100)).all()
    assert (whole != replicates(figure, seed=4, resamples=100)).any()
    monkeypatch.setattr("tunesmith.grading.statistics._CELLS", 50 * 7)
    assert (whole == replicates(figure, seed=3, resamples=100)).all()


def test_parts_of_one_text_are_drawn_as_one() -> None:
    generator = np.random.default_rng(13)
    loss_4 = generator.gamma(20.0, size=4)
    unit_N = np.repeat(np.arange(4), 50)
    parts = Figure(np.stack([loss_4[unit_N], np.full(200, 10.0)], 1), perplexity, unit_N=unit_N)
    texts = Figure(np.stack([loss_4, np.full(4, 10.0)], 1), perplexity)
    assert parts.rows == 4
    found, expected = interval(parts), interval(texts)
    both = ((one.value, one.low, one.high, one.n) for one in (found, expected))
    assert next(both) == pytest.approx(next(both), rel=1e-3)
    assert interval(replace(parts, unit_N=None)).low > found.low
    others = [replace(one, statistics=one.statistics * [1.1, 1.0]) for one in (parts, texts)]
    assert difference(parts, others[0]).p == difference(texts, others[1]).p > 0.05
    some = parts.take(np.arange(40, 120))
    assert (some.units, some.rows) == (3, 3)


def test_a_change_relative_to_nothing_is_none() -> None:
    ones = Figure(np.ones((5, 2)), share)
    none = Figure(np.stack([np.zeros(5), np.ones(5)], 1), share)
    assert difference(ones, none, relative=True).relative is None


def test_no_interval_leaves_the_scale_or_its_point() -> None:
    """Perplexity is at least 1, and kappa may be negative."""
    few = Figure(np.array([[math.log(5) * 9, 9.0], [math.log(20) * 9, 9.0]]), perplexity, least=1.0)
    assert 1.0 <= interval(few).low < 10 < interval(few).high
    worse = Figure(np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]] * 9), lambda sums: 100 * (sums[..., 0] / sums[..., 1] - 0.5), 100.0, least=-100.0)  # fmt: skip
    assert interval(worse).low < worse.point == -25 < interval(worse).high < 0


def test_few_units_leave_more_open_than_their_own_spread() -> None:
    """Intervals of three texts of many parts, with Student's t for what three things say."""
    generator, unit_N = np.random.default_rng(9), np.repeat(np.arange(3), 20)
    found = []
    for _ in range(300):
        loss_3 = generator.normal(10, 1, 3)
        figure = Figure(
            np.stack([loss_3[unit_N], np.ones(60)], 1), lambda sums: sums[..., 0] / sums[..., 1], unit_N=unit_N
        )
        one = interval(figure, resamples=400)
        found.append(one.low <= 10 <= one.high)
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize("parts", [1, 50])
def test_of_one_text_there_is_no_interval(parts) -> None:
    """Its parts are drawn together, so that each resample is the text again, but for how its sums are rounded."""
    generator, unit_N = np.random.default_rng(3), np.zeros(parts, dtype=np.int64)
    tuned, base = (
        Figure(
            np.stack([generator.normal(mean, 3, parts), np.full(parts, 9.7)], 1), perplexity, unit_N=unit_N, least=1.0
        )
        for mean in (12, 15)
    )
    alone, apart = interval(tuned), difference(tuned, base, relative=True)
    assert (alone.low, alone.high, alone.n) == (-math.inf, math.inf, 1)
    assert apart.relative is not None
    for each in (alone, apart, apart.relative):
        assert (each.to_json()["low"], each.to_json()["high"]) == (None, None)
    assert (apart.p, apart.detectable) == (1.0, None)
    assert apart.to_json()["relative"]["value"] == pytest.approx(100 * (tuned.point / base.point - 1))


def test_rounding_is_no_difference_that_could_be_seen() -> None:
    third = Figure(np.tile([0.1, 0.3], (7, 1)), share, top=100.0)
    other = Figure(np.tile([0.2, 0.6], (7, 1)), share, top=100.0)
    found = difference(third, other)
    assert found.detectable is None
    assert found.low < 0 < found.high
    assert interval(third).high > 34


def test_a_difference_reaches_from_one_end_of_the_scale_to_the_other() -> None:
    def kappa(hits: np.ndarray) -> Figure:
        return Figure(binary(hits).statistics, lambda sums: 2 * share(sums) - 100, top=100.0, least=-100.0)

    found = difference(kappa(np.ones(9)), kappa(np.zeros(9)))
    assert (found.value, found.high) == (200, 200)
    few = difference(kappa(np.arange(9) > 0), kappa(np.arange(9) < 1))
    assert few.low < few.value < few.high == 200
