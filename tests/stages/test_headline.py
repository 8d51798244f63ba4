"""Figures in words: the sign of a gain."""

import pytest

from tunesmith.stages.headline import cells

FOUND = {
    "unit": "perplexity",
    "better": "lower",
    "systems": {"base": {"value": 9.5, "low": 9.0, "high": 10.0}, "tuned": {"value": 7.25, "low": 7.0, "high": 7.5}},
    "differences": {"tuned - base": {"value": -2.25, "low": -2.5, "high": -1.5}},
}


@pytest.mark.parametrize(
    ("better", "gain"), [("lower", ("+2.2", "+1.5 to +2.5")), ("higher", ("-2.2", "-2.5 to -1.5"))]
)
def test_what_a_system_is_better_by_is_more_or_less_as_its_grader_has_it(better, gain):
    base, tuned = cells({**FOUND, "better": better}, "tuned")
    assert base[3:] == gain
    assert tuned[3:] == ("", "")
