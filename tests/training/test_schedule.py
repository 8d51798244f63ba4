import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.training.schedule import Schedule


def curve(steps, **fields):
    schedule = Schedule(**fields)
    return [schedule.factor(step, steps) for step in range(steps)]


def test_linear_values():
    assert curve(10, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cosine_values_with_a_floor():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert curve(8, shape="cosine", warmup=0, floor=0.1) == pytest.approx(expected)


def test_constant_after_warmup():
    assert curve(6, shape="constant", warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_warmup_below_one_is_a_share_of_all_steps():
    assert curve(100, warmup=0.1) == pytest.approx(curve(100, warmup=10))


@given(
    st.integers(1, 300),
    st.sampled_from(["linear", "cosine", "constant"]),
    st.one_of(st.integers(0, 400), st.floats(0, 0.99)),
    st.floats(0, 1),
)
def test_it_rises_to_the_peak_and_falls_to_the_floor(steps, shape, warmup, floor):
    factors = curve(steps, shape=shape, warmup=warmup, floor=floor)
    assert all(0 < factor <= 1 + 1e-12 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(factor >= floor - 1e-12 for factor in factors[peak:]) or peak == steps - 1
