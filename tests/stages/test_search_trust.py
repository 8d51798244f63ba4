"""What an audit says of early scores: correlations by their definitions, intervals that hold as often as they say, and ties that speak for nothing."""

import itertools
import math
import sys

import numpy as np
import pytest
from scipy import stats
from searches import results, write_recipe

import tunesmith
from tunesmith.base import MachineError, Run
from tunesmith.stages.search.table import summary
from tunesmith.stages.search.trust import trust


def slow_kendall(left, right) -> float:
    """Tau-b by its definition."""
    pairs = list(itertools.combinations(range(len(left)), 2))
    signs = [(np.sign(left[i] - left[j]), np.sign(right[i] - right[j])) for i, j in pairs]
    first, second = (sum(pair[side] != 0 for pair in signs) for side in (0, 1))
    return sum(a * b for a, b in signs) / math.sqrt(first * second)


@pytest.mark.parametrize("seed", range(4))
def test_an_audit_says_what_the_definitions_say(seed):
    draw = np.random.default_rng(seed)
    early = draw.normal(size=14).round(1).tolist()  # with ties
    final = (np.array(early) + draw.normal(size=14)).round(1).tolist()
    found = trust(early, final, lower_is_better=True)
    assert found["kendall"]["value"] == pytest.approx(slow_kendall(early, final))
    ranks = [stats.rankdata(scores) for scores in (early, final)]
    assert found["spearman"]["value"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(early, final).statistic)
    for name in ("spearman", "kendall"):
        assert -1 <= found[name]["low"] < found[name]["value"] < found[name]["high"] <= 1
    best = set(sorted(range(14), key=lambda place: (early[place], place))[:5])
    stayed = min(len(best & set(chosen)) for chosen in itertools.combinations(range(14), 5) if sorted(final[place] for place in chosen) == sorted(final)[:5])  # fmt: skip
    assert (found["top"], found["stayed"]) == (5, stayed)
    assert found["chance"] == pytest.approx(25 / 14)
    ways = [math.comb(5, kept) * math.comb(9, 5 - kept) for kept in range(6)]
    assert found["p"] == pytest.approx(sum(ways[found["stayed"] :]) / math.comb(14, 5))
    upside = trust([-value for value in early], [-value for value in final], lower_is_better=False)
    assert upside["stayed"] == found["stayed"]


def test_the_interval_of_a_correlation_holds_the_true_one_as_often_as_it_says():
    """Pairs of normal numbers, whose Spearman correlation is 6 / pi asin(rho / 2)."""
    draw, true, held = np.random.default_rng(0), 6 / math.pi * math.asin(0.7 / 2), 0
    for _ in range(400):
        left, right = draw.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 12).T
        found = trust(left.tolist(), right.tolist(), True)["spearman"]
        held += found["low"] <= true <= found["high"]
    assert 0.92 < held / 400 < 0.98


def test_an_audit_of_few_or_equal_trials_says_so():
    assert trust([1.0, 2.0], [1.0, 2.0], True)["spearman"] is None
    assert trust([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], True)["kendall"] is None
    few = trust([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], True)
    assert (few["spearman"]["low"], few["spearman"]["high"]) == pytest.approx((-1, 1))
    assert (few["top"], few["stayed"], few["chance"]) == (3, 3, 3.0)


def test_trials_that_were_still_warming_up_when_they_were_scored_are_named(tmp_path, tiny_folder):
    """With a warmup of three steps, which a fifth of ten steps is not yet past."""
    settings = (
        "search.trials=2",
        "search.sampler=grid",
        "search.space={finetune.batch: [4, 8]}",
        "finetune.schedule.warmup=3",
    )
    tunesmith.search(write_recipe(tmp_path, tiny_folder), *settings, folder=tmp_path / "r")
    found = results(Run(tmp_path / "r"))
    assert [(each["settings"]["finetune.batch"], each["warming"]) for each in found["trials"]] == [
        (4, False),
        (8, True),
    ]
    assert [
        line
        for line in summary(found)
        if line.startswith("Still warming up when scored at 20 %, which says little of the end: 1. ")
    ]


def test_ties_do_not_speak_for_the_early_score():
    assert trust([0.0] * 12, [0.0] * 12, False)["stayed"] == 0
    early, final = (
        [9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        [9.0, 9, 9, 1, 1, 1, 1, 1, 0, 0],
    )  # two of five equal ones are among the best
    found = trust(early, final, False)
    assert found["stayed"] == 3
    assert found["p"] == pytest.approx(float(stats.hypergeom.sf(2, 10, 5, 5)))


def test_a_perfect_order_of_few_trials_is_no_certainty():
    found = [trust([*range(count)], [*range(count)], True) for count in (6, 12, 24)]
    lows = [each["spearman"]["low"] for each in found]
    assert 0 < lows[0] < 0.7 < lows[1] < lows[2] < 1
    assert [each[name]["value"] for each in found for name in ("spearman", "kendall")] == pytest.approx([1.0] * 6)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MachineError, match=r"'scipy' is not installed; run: pip install .*\[search\]"):
        trust([1.0], [1.0], False)
