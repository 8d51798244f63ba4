"""A split depends on seed and content alone, has the sizes asked for, and keeps classes and groups as told."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import ConfigError, DataError
from tunesmith.data.example import Example
from tunesmith.data.split import split


def rows(count: int, **meta: object) -> list[Example]:
    def value(field: object, number: int) -> object:
        return field(number) if callable(field) else field

    answer = (({"role": "assistant", "content": "x"},),)
    return [
        Example(
            f"f:{number}",
            ({"role": "user", "content": f"row {number}"},),
            answer,
            meta={k: value(v, number) for k, v in meta.items()},
        )
        for number in range(count)
    ]


PARTS = {"test": 0.1, "validation": 0.1}


@given(st.integers(1, 60), st.floats(0, 0.6), st.floats(0, 0.6), st.integers(0, 99))
def test_sizes_are_as_asked_and_train_is_never_empty(count: int, test: float, validation: float, seed: int) -> None:
    sides = Counter(split(rows(count), {"test": test, "validation": validation}, seed=seed))
    assert sides["train"] >= 1
    assert sides.total() == count
    if test + validation < 0.9 and count > 10:
        assert sides["test"] == (max(1, round(test * count)) if test else 0)
        assert sides["validation"] == (max(1, round(validation * count)) if validation else 0)


@given(
    st.randoms(use_true_random=False),
    st.integers(0, 9),
    st.sampled_from([(None, None), ("kind", None), (None, "kind")]),
)
def test_order_of_rows_changes_nothing(
    shuffler: random.Random, seed: int, fields: tuple[str | None, str | None]
) -> None:
    stratify, group = fields
    examples = rows(40, kind=lambda number: number % 7)
    before = dict(
        zip(
            [e.origin for e in examples], split(examples, PARTS, seed=seed, stratify=stratify, group=group), strict=True
        )
    )
    shuffler.shuffle(examples)
    after = dict(
        zip(
            [e.origin for e in examples], split(examples, PARTS, seed=seed, stratify=stratify, group=group), strict=True
        )
    )
    assert before == after


def test_another_process_and_another_seed() -> None:
    program = "from tests.data.test_split import rows, split, PARTS; print(split(rows(50), PARTS, seed=3))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hashing},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashing in ("1", "2")
    }
    assert runs == {f"{split(rows(50), PARTS, seed=3)}\n"}
    assert split(rows(50), PARTS, seed=3) != split(rows(50), PARTS, seed=4)


def test_counts() -> None:
    assert Counter(split(rows(50), {"test": 7, "validation": 5}, seed=0)) == {"train": 38, "test": 7, "validation": 5}
    with pytest.raises(ConfigError, match="30 for test and 20 for validation of 50 rows leaves none"):
        split(rows(50), {"test": 30, "validation": 20}, seed=0)


def test_tiny_sets_keep_a_row_to_train_on() -> None:
    expected = {1: (1, 0), 2: (1, 1), 3: (1, 2), 5: (3, 2)}
    for count, (train, held_out) in expected.items():
        sides = Counter(split(rows(count), PARTS, seed=0))
        assert (sides["train"], sides["test"] + sides["validation"]) == (train, held_out)


@given(st.integers(0, 50))
def test_stratified_sides_keep_the_proportions(seed: int) -> None:
    examples = rows(100, kind=lambda number: "rare" if number < 20 else "common")
    sides = split(examples, {"test": 0.2, "validation": 0.1}, seed=seed, stratify="kind")
    counts = Counter((side, example.meta["kind"]) for side, example in zip(sides, examples, strict=True))
    assert (counts["test", "rare"], counts["test", "common"]) == (4, 16)
    assert (counts["validation", "rare"], counts["validation", "common"]) == (2, 8)


@given(st.lists(st.integers(0, 8), min_size=4, max_size=60), st.integers(0, 9))
def test_a_group_is_never_cut(kinds: list[int], seed: int) -> None:
    examples = rows(len(kinds), kind=lambda number: kinds[number])
    if len(set(kinds)) < 3:
        return
    sides = split(examples, PARTS, seed=seed, group="kind")
    found = {(example.meta["kind"], side) for side, example in zip(sides, examples, strict=True)}
    assert len(found) == len(set(kinds))
    assert set(sides) == {"train", "validation", "test"}


def test_rows_that_ask_the_same_go_to_one_side() -> None:
    asked = [example for example in rows(60) for _ in range(2)]
    sides = split(asked, PARTS, seed=0)
    assert sides[::2] == sides[1::2]


def test_a_missing_field_or_too_few_groups_is_said() -> None:
    with pytest.raises(DataError, match=r"f:0: has no field 'kind' .* it has 'topic'"):
        split(rows(9, topic=1), PARTS, seed=0, stratify="kind")
    with pytest.raises(DataError, match="too few values"):
        split(rows(9, kind=1), PARTS, seed=0, group="kind")
    with pytest.raises(DataError, match=r"f:3: has null in field 'kind' .* it has 'topic'"):
        split(rows(9, kind=lambda number: None if number == 3 else number, topic=1), PARTS, seed=0, group="kind")
    assert Counter(split(rows(10), {"test": 0.5}, seed=0, stratify="answer"))["test"] == 5


def test_who_is_held_out_for_a_seed_stays_as_it_was() -> None:
    sides = split(rows(40), PARTS, seed=3)
    held_out = {side: [number for number, name in enumerate(sides) if name == side] for side in PARTS}
    assert held_out == {"test": [7, 10, 18, 25], "validation": [19, 22, 26, 34]}


def test_signs_have_no_say_in_who_is_held_out() -> None:
    def asking(sign: str) -> list[Example]:
        said = ({"role": "assistant", "content": "7"},)
        return [Example(f"f:{n}", ({"role": "user", "content": f"{n} {sign} 3 of a"},), (said,)) for n in range(40)]

    assert split(asking("+"), PARTS, seed=3) == split(asking("-"), PARTS, seed=3) == split(asking(""), PARTS, seed=3)
