"""Parts of the rows: nested, each class in proportion, drawn anew by another seed."""

import numpy as np
from hypothesis import given as examples_of
from hypothesis import strategies as st

from tunesmith.data.subset import ordered


@examples_of(
    st.lists(st.lists(st.sampled_from("abcdefg"), max_size=2), min_size=1, max_size=80), st.integers(0, 3), st.data()
)
def test_parts_of_the_rows_are_nested_and_hold_each_class_in_proportion(classes, seed, data):
    order = ordered(classes, seed)
    assert sorted(order.tolist()) == list(range(len(classes)))
    count = {one: sum(one in each for each in classes) or 1 for one in "abcdefg"}
    own = [min(each, key=lambda one: (count[one], one)) if each else "none" for each in classes]
    wanted = data.draw(st.integers(0, len(classes)))
    taken = [own[place] for place in order[:wanted]]
    kinds = len(set(own))
    for name in set(own):
        share = own.count(name) / len(own)
        assert abs(taken.count(name) - wanted * share) < 1 + kinds * share


def test_a_rare_class_is_as_likely_early_as_late():
    classes = [["rare"]] + [["common"]] * 99
    place = [ordered(classes, seed).tolist().index(0) for seed in range(200)]
    assert 40 < np.mean(place) < 60
    assert np.std(place) > 20
