"""The counting itself: a bound that textbooks state, and a trial that failed in silence is never lost."""

import pytest
from tally import Tally, upper_bound


@pytest.mark.parametrize(
    ("failures", "trials", "bound"), [(0, 50, 0.0582), (0, 300, 0.00994), (1, 20, 0.2161), (3, 3, 1.0)]
)
def test_the_bound_is_the_exact_one(failures, trials, bound):
    assert upper_bound(failures, trials) == pytest.approx(bound, abs=5e-5)


def test_what_did_not_hold_is_told_apart_by_whether_it_said_so():
    tally = Tally("R0", "nothing")
    tally.verdict("one", held=True)
    tally.verdict("two", held=False, said=True, reason="weights differ; a warning was printed")
    tally.verdict("three", held=False, reason="weights differ")
    summary = tally.summary()
    assert (summary["passes"], summary["silent"], summary["total"]) == (1, 1, 3)
    assert tally.failed == ["two: loud: weights differ; a warning was printed", "three: silent: weights differ"]
    assert summary["silent_at_most"] == pytest.approx(0.8647, abs=1e-4)
