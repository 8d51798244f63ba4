"""An epoch holds the classes in the shares asked for, no row comes twice before its class is through, and nothing else changes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base import ConfigError
from tunesmith.base.spec import validate
from tunesmith.data.example import WEIGHT, Row, Sequence
from tunesmith.methods.objectives.sft import SFT
from tunesmith.stages.estimate import Workload
from tunesmith.stages.finetune import Finetune
from tunesmith.stages.recipe import Recipe
from tunesmith.training.balance import Balance
from tunesmith.training.batches import Dataset


def rows(counts):
    """So many rows of each class, longer ones first."""
    names = [name for name, count in counts.items() for _ in range(count)]
    return [
        Row(f"r:{place}", (Sequence(np.arange(3 + place % 4) + 3, np.arange(3 + place % 4) > 0),), classes=(name,))
        for place, name in enumerate(names)
    ]


def epoch(data, number):
    return Counter(data.rows[place].classes[0] for place in data.order(number))


SKEWED = {"c": 60, "perl": 12, "ada": 3}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SKEWED),
        ({"power": 0}, {"c": 25, "perl": 25, "ada": 25}),
        ({"power": 0, "size": "over"}, {"c": 60, "perl": 60, "ada": 60}),
        ({"power": 0, "size": "under"}, {"c": 3, "perl": 3, "ada": 3}),
        ({"power": 0.5, "size": "over"}, {"c": 60, "perl": 27, "ada": 13}),  # 60 sqrt(12 / 60) = 26.8
        ({"power": 0.5, "size": "under"}, {"c": 13, "perl": 6, "ada": 3}),  # 3 sqrt(60 / 3) = 13.4
        ({"power": 0.5}, {"c": 45, "perl": 20, "ada": 10}),  # 75 sqrt(n) / (sqrt(60) + sqrt(12) + sqrt(3))
    ],
)
def test_an_epoch_holds_what_was_asked_for(settings, expected):
    data = Finetune(balance=Balance(**settings)).dataset(rows(SKEWED), seed=4)
    assert [epoch(data, number) for number in range(3)] == [expected] * 3
    assert {name: each["epoch"] for name, each in Balance(**settings).table(data.rows).items()} == expected
    assert data.size == sum(expected.values())
    assert len(list(data.from_step(0))) == data.steps == 3 * -(-data.size // 8)


counted = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 25), min_size=1)
balances = st.one_of(
    st.builds(Balance, power=st.floats(0, 1, exclude_max=True), size=st.sampled_from(["same", "over", "under"])),
    st.just(Balance()),
)


@settings(max_examples=80)
@given(counted, balances, st.integers(0, 9), st.integers(1, 9))
def test_rows_of_a_class_take_turns(counts, balance, seed, batch):
    data = Finetune(balance=balance, batch=batch, epochs=4).dataset(rows(counts), seed)
    places = np.concatenate([data.order(number) for number in range(4)])
    drawn = np.bincount(places, minlength=len(data.rows))
    for name in counts:
        own = [drawn[place] for place, row in enumerate(data.rows) if row.classes == (name,)]
        assert max(own) - min(own) <= 1
    if balance.size == "same":
        assert data.size == len(data.rows)
    if balance.size == "over":
        assert min(epoch(data, 0)[name] - count for name, count in counts.items()) >= 0
    if balance.size == "under":
        assert max(epoch(data, 0)[name] - count for name, count in counts.items()) <= 0


@settings(max_examples=40)
@given(counted, balances, st.integers(0, 9))
def test_a_step_is_a_function_of_seed_and_number_alone(counts, balance, seed):
    one, other = (Finetune(balance=balance, epochs=3).dataset(rows(counts), seed) for _ in range(2))
    whole = [one.chosen(number) for number in range(one.steps)]
    assert [other.chosen(number) for number in reversed(range(other.steps))] == whole[::-1]


def test_power_1_is_the_plain_dataset_bit_for_bit():
    given = rows(SKEWED)
    plain = Dataset(given, 8, 8, 3.0, 5)
    for size in ("same", "over", "under"):
        draw = Balance(power=1 - 1e-15, size=size).draw(given)
        balanced = replace(plain, draw=draw)
        assert [balanced.chosen(number) for number in range(plain.steps)] == [
            plain.chosen(n) for n in range(plain.steps)
        ]


def test_rows_left_out_by_one_epoch_come_in_the_next():
    data = Finetune(balance=Balance(power=0, size="under"), epochs=4).dataset(rows({"a": 12, "b": 3}), 0)
    seen = [{place for place in data.order(number) if place < 12} for number in range(4)]
    assert set().union(*seen) == set(range(12))
    assert all(len(each) == 3 for each in seen)


def test_a_common_value_is_not_rare_because_a_rarer_one_stands_beside_it():
    """One row says only `program`, as five others do beside something rarer: it is a row of the commonest value."""
    plain = rows({"x": 6})
    said = [("program",), *(("program", other) for other in ("c", "c", "perl", "perl", "perl"))]
    given = [replace(row, classes=classes) for row, classes in zip(plain, said, strict=True)]
    table = Balance(weight=1).table(given)
    assert {name: each["rows"] for name, each in table.items()} == {"program": 1, "c": 2, "perl": 3}
    assert table["program"]["weight"] < table["perl"]["weight"] < table["c"]["weight"]
    assert table["c"]["weight"] / table["program"]["weight"] == pytest.approx(6 / 2, rel=1e-3)


@pytest.mark.parametrize("weight", [0.5, 0.9, 0.999, 1])
def test_weights_are_inverse_effective_numbers_with_mean_1(weight):
    given = Balance(weight=weight).weighted(rows(SKEWED))
    found = {row.classes[0]: row.columns[WEIGHT] for row in given}
    effective = {name: sum(weight**k for k in range(n)) for name, n in SKEWED.items()}  # 1 + b + ... + b^(n-1)
    for name in SKEWED:
        assert found[name] / found["c"] == pytest.approx(effective["c"] / effective[name])
    assert np.mean([row.columns[WEIGHT] for row in given]) == pytest.approx(1)
    if weight == 1:
        assert found == pytest.approx({name: 75 / (3 * n) for name, n in SKEWED.items()})


def test_a_weight_that_a_row_has_of_its_own_is_kept():
    given = [replace(row, columns={WEIGHT: 0.5}) for row in rows(SKEWED)]
    found = {row.classes[0]: row.columns[WEIGHT] for row in Balance(weight=1).weighted(given)}
    assert found == pytest.approx({name: 0.5 * 75 / (3 * n) for name, n in SKEWED.items()})


def test_the_loss_and_its_gradient_are_those_of_weighted_rows(build, random_rows):
    loaded = build("llama", spread=0.3, vocab_size=97)
    given = [replace(row, classes=(name,)) for row, name in zip(random_rows(4), "aaab", strict=True)]
    parameter = loaded.model.lm_head.weight
    (batch,) = Dataset(Balance(weight=1).weighted(given), 4, 4, 1, 0).step(0)
    total = SFT()(loaded, batch).total
    gradient = torch.autograd.grad(total, parameter)[0]
    alone = [SFT()(loaded, Dataset([row], 1, 1, 1, 0).step(0)[0]).total for row in given]
    expected = sum(weight * loss for weight, loss in zip((2 / 3, 2 / 3, 2 / 3, 2), alone, strict=True))
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, parameter)[0], atol=1e-4, rtol=1e-4)


def test_a_row_that_is_drawn_twice_in_a_step_counts_twice_and_is_computed_once(build, random_rows):
    loaded = build("llama", spread=0.3, vocab_size=97)
    (row,) = random_rows(1)
    given = [replace(row, classes=("rare",)), *(replace(each, classes=("common",)) for each in random_rows(3, seed=2))]
    data = Finetune(balance=Balance(power=0, size="over"), batch=6, epochs=1).dataset(given, 0)
    (batch,) = data.step(0)
    assert len(batch.origins) == 6
    assert len(batch.forest.tokens_N) <= sum(len(each) for each in given)
    alone = [SFT()(loaded, Dataset([each], 1, 1, 1, 0).step(0)[0]).total.item() for each in given]
    assert SFT()(loaded, batch).total.item() == pytest.approx(3 * alone[0] + sum(alone[1:]), rel=1e-4)


def test_the_plan_counts_the_rows_of_an_epoch():
    given = rows({"a": 20, "b": 2})
    data = Finetune(balance=Balance(power=0, size="over"), batch=4, epochs=3).dataset(given, 0)
    work = Workload(replace(data, share=False))
    places = [place for step in range(data.steps) for place in data.chosen(step)]
    assert data.steps == 30
    assert work.tokens == sum(len(given[place]) for place in places)
    assert work.largest.tokens == max(
        sum(len(given[place]) for place in data.chosen(step)) for step in range(data.steps)
    )


def test_prompts_whose_answers_are_sampled_are_drawn_alike():
    rollouts = {"rewards": [{"grader": {"kind": "exact"}}], "samples": 2, "max_tokens": 3, "updates": 2}
    tree = {
        "objective": {"kind": "grpo"},
        "rollouts": rollouts,
        "balance": {"power": 0, "size": "over"},
        "epochs": 1,
        "batch": 5,
    }
    data = validate(Finetune, tree, "r.yaml").dataset(rows({"a": 10, "b": 2}), 0)
    assert (data.size, data.steps_per_epoch, data.steps) == (20, 8, 8)  # four rollouts, two steps on each
    assert sum(place >= 10 for step in range(0, 8, 2) for place in data.chosen(step)) == 10


PREPARE = {"source": "rows.jsonl"}


def recovery(settings):
    """Of a pruned model."""
    return {"method": {"kind": "magnitude"}, "recovery": settings}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"prepare": PREPARE, "finetune": {"balance": {"power": 0}}}, "set prepare.classes, for example to answer"),
        ({"prepare": PREPARE, "finetune": {"balance": {"power": 0.5, "weight": 0.9}}}, "correct the same skew twice"),
        (
            {
                "prepare": {**PREPARE, "classes": "answer"},
                "finetune": {"objective": {"kind": "dpo"}, "balance": {"weight": 1}},
            },
            "objective dpo does not weigh rows.*balance.power",
        ),
        (
            {"prepare": {**PREPARE, "weight": "worth"}, "finetune": {"objective": {"kind": "dpo"}}},
            "dpo does not weigh rows",
        ),
        (
            {"prepare": PREPARE, "prune": recovery({"balance": {"power": 0}})},
            r"prune\.recovery\.balance needs to know what a row's class is; set prepare\.classes",
        ),
        (
            {
                "prepare": {**PREPARE, "weight": "worth"},
                "prune": recovery({"objective": {"kind": "distill"}}),
            },
            r"prepare\.weight: prune\.recovery\.objective distill does not weigh rows",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(Recipe, tree, "r.yaml")
