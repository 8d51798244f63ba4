from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batch import distinct
from tunesmith.data.example import Row, Sequence
from tunesmith.models.forward import token_logps
from tunesmith.training.batches import Dataset


def rows(count):
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        length = int(generator.integers(2, 9))
        made.append(Row(f"r:{number}", (Sequence(np.arange(length) + 3, np.arange(length) > 0),)))
    return made


def origins(batches):
    return [origin for batch in batches for origin in batch.origins]


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 7), st.integers(0, 5))
def test_an_epoch_holds_every_row_once(count, batch, micro_batch, seed):
    data = Dataset(rows(count), batch, micro_batch, 2, seed)
    steps = list(data.from_step(0))
    assert len(steps) == data.steps == 2 * data.steps_per_epoch
    for epoch in range(2):
        seen = [
            origin for step in steps[epoch * data.steps_per_epoch :][: data.steps_per_epoch] for origin in origins(step)
        ]
        assert sorted(seen) == sorted(row.origin for row in data.rows)
    for step in steps:
        assert len(origins(step)) <= batch
        assert all(len(part.origins) <= micro_batch for part in step)


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    one, two = (Dataset(rows(12), 4, 4, 3, 7) for _ in range(2))
    for number in (5, 0, 8, 5):  # in whatever order they are asked for
        assert origins(one.step(number)) == origins(two.step(number))
    assert [origins(step) for step in one.from_step(6)] == [origins(one.step(number)) for number in (6, 7, 8)]
    assert one.order(0).tolist() != one.order(1).tolist()
    assert one.order(0).tolist() != Dataset(rows(12), 4, 4, 3, 8).order(0).tolist()


def test_the_batches_of_a_step_do_not_depend_on_the_micro_batch():
    whole, parts = (Dataset(rows(10), 5, micro_batch, 1, 0) for micro_batch in (5, 2))
    for number in range(2):
        assert origins(whole.step(number)) == origins(parts.step(number))
        assert [len(batch.origins) for batch in parts.step(number)] == [2, 2, 1]


def test_rows_that_begin_alike_share_a_micro_batch():
    beginnings = [np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])]
    given = [
        Row(f"r:{n}", (Sequence(np.append(beginnings[n % 2], n + 10).astype(np.int32), np.arange(5) > 3),))
        for n in range(8)
    ]
    apart = [len(batch.forest.tokens_N) for batch in Dataset(given, 8, 4, 1, 0, share=False).step(0)]
    together = [len(batch.forest.tokens_N) for batch in Dataset(given, 8, 4, 1, 0).step(0)]
    assert (apart, together) == ([20, 20], [8, 8])


def test_what_rows_share_is_counted_once_however_they_are_cut(random_rows):
    given = random_rows(6, answers=2, vocabulary=5)
    (whole,) = Dataset(given, 6, 6, 1, 0).step(0)
    for size, share in ((6, True), (6, False), (4, True), (1, True), (1, False)):
        parts = Dataset(given, 6, size, 1, 0, share).step(0)
        assert distinct(parts) == whole.distinct < whole.tokens
    assert sum(part.distinct for part in Dataset(given, 6, 1, 1, 0).step(0)) > whole.distinct


def test_with_nothing_shared_the_result_is_the_same(build, random_rows):
    loaded, given = build("llama", spread=0.3, vocab_size=97), random_rows(4, answers=2)
    found = []
    for share in (True, False):
        (batch,) = Dataset(given, 4, 4, 1, 0, share).step(0)
        logps = token_logps(loaded, batch)
        sequences = range(len(batch.row_S))
        found.append(sorted(float(logps[batch.sequence_M == number].sum().detach()) for number in sequences))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_without_sharing_rows_of_like_length_share_a_micro_batch():
    data = Dataset(rows(12), 12, 3, 1, 0, share=False)
    lengths = [[len(data.rows[int(origin[2:])]) for origin in batch.origins] for batch in data.step(0)]
    in_order = list(chain.from_iterable(lengths))
    assert in_order == sorted(in_order)


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.5, 2), (1, 4), (2.5, 10)])
def test_epochs_may_be_broken(epochs, steps):
    data = Dataset(rows(10), 3, 3, epochs, 0)
    assert data.steps_per_epoch == 4
    assert data.steps == steps == len(list(data.from_step(0)))
