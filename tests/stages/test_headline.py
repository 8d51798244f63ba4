"""Figures in words: the sign of a gain, and as many decimals as their scale is worth."""

import pytest

from tunesmith.grading.exact import Exact
from tunesmith.grading.rank_correlation import RankCorrelation
from tunesmith.stages.compare import cells as compared
from tunesmith.stages.curve.text import beside
from tunesmith.stages.headline import cells, spoken, warnings

FOUND = {
    "unit": "perplexity",
    "better": "lower",
    "digits": 2,
    "systems": {"base": {"value": 9.5, "low": 9.0, "high": 10.0}, "tuned": {"value": 7.25, "low": 7.0, "high": 7.5}},
    "differences": {"tuned - base": {"value": -2.25, "low": -2.5, "high": -1.5}},
}


@pytest.mark.parametrize(
    ("better", "gain"), [("lower", ("+2.25", "+1.50 to +2.50")), ("higher", ("-2.25", "-2.50 to -1.50"))]
)
def test_what_a_system_is_better_by_is_more_or_less_as_its_grader_has_it(better, gain):
    base, tuned = cells({**FOUND, "better": better}, "tuned")
    assert base[3:] == gain
    assert tuned[3:] == ("", "")


def test_a_small_scale_has_more_decimals_than_one_of_a_hundred():
    figure = {"value": 0.8123, "low": 0.7, "high": 0.9}
    values = {"as given": figure, "rank=4": figure}
    found = {"figures": [
        {"grader": grader.kind, "unit": grader.unit, "better": grader.better, "digits": grader.digits, "name": "headline", "summary": True, "values": values,
         "differences": {"rank=4": figure}, "points": []} for grader in (RankCorrelation(column="stars"), Exact())
    ]}  # fmt: skip
    told = list(compared(found))
    assert told[1][2:] == ("0.812 (0.700 to 0.900)", "+0.812 (+0.700 to +0.900)")
    assert told[3][2:] == ("0.8 (0.7 to 0.9)", "+0.8 (+0.7 to +0.9)")
    (line,) = beside({"figures": [{**found["figures"][0], "systems": {"few-shot": figure}}]})
    assert line == "few-shot: 0.812 (0.700 to 0.900)"


def test_where_there_is_no_interval_it_is_said():
    nothing = {"value": -1.5, "low": None, "high": None}
    base, _ = cells({**FOUND, "systems": dict.fromkeys(("base", "tuned"), nothing), "differences": {"tuned - base": nothing}}, "tuned")  # fmt: skip
    assert base[1:] == ("-1.50", "no interval", "+1.50", "no interval")
    assert spoken(nothing, 1, "+") == "-1.5 (no interval)"


def test_answers_that_were_cut_off_and_what_is_remembered_are_warned_of():
    found = warnings({"cut_off": {"base": 37.5}, "canaries": {"warnings": ["rows are remembered"]}})
    assert found == ["37.5 % of the answers of base were cut off at evaluate.max_tokens", "rows are remembered"]
    assert warnings(FOUND) == []
