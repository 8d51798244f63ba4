"""What a data curve foretells of scores of several kinds, and where it says that it can foretell nothing."""

import json

import numpy as np
import pytest

from tunesmith.data.example import Example
from tunesmith.grading.bleu import Bleu
from tunesmith.grading.chrf import Chrf
from tunesmith.grading.classes import Classes
from tunesmith.grading.learning_curve import RESAMPLES
from tunesmith.grading.perplexity import Perplexity, perplexity
from tunesmith.grading.statistics import Figure
from tunesmith.grading.ter import Ter
from tunesmith.stages.curve import Curve
from tunesmith.stages.curve.forecast import forecast
from tunesmith.stages.curve.settings import doubling

SETTINGS = Curve(target=0.9, price=0.5)


def told_by(grader, wrong, spec=SETTINGS, rows=60):
    """A forecast of answers of four words, of which so many per hundred rows are one word off, by size."""
    gold = [Example(f"t:{n}", (), (({"role": "assistant", "content": f"one two three {n}"},),)) for n in range(rows)]
    series = [
        [grader.figures(gold, [f"one two three {n if (7 * n + seed) % 100 >= count else 'x'}" for n in range(rows)])["headline"] for seed in (0, 3)]
        for count in wrong.values()
    ]  # fmt: skip
    return forecast(grader, list(wrong), series, 100, spec)


@pytest.mark.parametrize("grader", [Ter(), Bleu(), Chrf(word_order=2)])
def test_a_corpus_score_has_a_curve_too_whichever_way_is_better(grader):
    spec = SETTINGS.model_copy(update={"target": 5.0 if grader.better == "lower" else 95.0, "least_gain": 0.5})
    told = told_by(grader, {10: 90, 20: 70, 40: 45, 80: 30}, spec)
    first, last = told["line"][0], told["line"][-1]
    assert (last["value"] - first["value"]) * (1 if grader.better == "higher" else -1) > 0
    assert all(point["low"] <= point["high"] for point in told["line"])
    assert told["target"]["rows"] is None or told["target"]["rows"] > 80
    assert told["calibration"]["of"] == 1
    assert [each["more"] for each in told["at"]] == [60, 700]


def test_samples_of_test_rows_without_a_class_do_not_end_the_curve():
    """Of some bootstrap samples no row has the field that is graded, so that they have no score."""
    gold = [Example(f"t:{n}", (), (({"role": "assistant", "content": json.dumps({"role": "ab"[n % 2]} if n < 2 else {"x": 1})},),)) for n in range(60)]  # fmt: skip
    grader = Classes(by="answer.role")
    series = [
        [grader.figures(gold, [json.dumps({"role": "ab"[(n % 2) ^ (n < wrong)]}) for n in range(60)])["headline"]]
        for wrong in (2, 1, 0)
    ]
    told = forecast(grader, [10, 20, 40], series, 100, SETTINGS)
    assert RESAMPLES / 2 < told["resamples"] < RESAMPLES
    series = [[Figure(np.ones((3, 1)), lambda sums: np.full(sums.shape[:-1], np.nan), 100.0)]] * 3
    assert "hold out more rows of each class" in forecast(grader, [10, 20, 40], series, 100, SETTINGS)["reason"]


def test_nothing_is_foretold_where_nothing_differs():
    assert "scores the same" in told_by(Ter(), {10: 100, 20: 100, 40: 100})["reason"]
    assert "2 sizes are too few" in told_by(Ter(), {10: 50, 20: 40})["reason"]


@pytest.mark.parametrize(("total", "expected"), [(3, [1, 2, 3]), (20, [2, 4, 8, 20]), (200, [25, 50, 100, 200]), (220, [25, 50, 100, 220]),
                                                 (299, [25, 50, 100, 299]), (300, [25, 50, 100, 200, 300])])  # fmt: skip
def test_sizes_double_up_to_all_rows(total, expected):
    assert doubling(total) == expected


def test_nothing_is_foretold_by_one_text():
    series = [[Figure(np.array([[loss, 10.0]]), perplexity, least=1.0)] for loss in (30.0, 20.0, 15.0)]
    assert "the test rows count as one" in forecast(Perplexity(), [10, 20, 40], series, 100, SETTINGS)["reason"]


def test_a_perplexity_is_foretold_down_to_one():
    generator = np.random.default_rng(0)
    series = [
        [Figure(np.stack([10 * generator.normal(np.log(mean), 0.05, 60), np.full(60, 10.0)], 1), perplexity, least=1.0)]
        for mean in (1.62, 1.44, 1.30, 1.19, 1.10)
    ]
    told = forecast(Perplexity(), [25, 50, 100, 200, 400], series, 400, SETTINGS.model_copy(update={"target": 1.05}))
    assert told["best"] == 1.0
    assert all(1 <= point["low"] <= point["high"] for point in (*told["line"], *told["at"]))
    assert told["target"]["score"] == 1.05
