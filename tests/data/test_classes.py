"""The class of a row is found wherever a path says, and of several values it is the rarest."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import DataError
from tunesmith.data.classes import NONE, rarest, values
from tunesmith.data.example import Example
from tunesmith.data.split import split


def example(answer: object, number: int = 0, /, **meta: object) -> Example:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    asked = ({"role": "user", "content": f"what is {number}?"},)
    return Example(f"f:{number}", asked, (({"role": "assistant", "content": text},),), meta=meta)


TAGGED = example(
    {"role": "program", "made": {"in": ["c", "perl", "c"]}, "size": 3}, topic="mail", product={"kind": "x"}
)


def test_a_class_that_is_half_a_character_can_be_written() -> None:
    found = values(example(r'{"role": "x\ud83d", "\udfff": 1}'), "answer.*")
    assert found == (r"role=x\ud83d", r"\udfff=1")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("topic", ("mail",)),
        ("product.kind", ("x",)),
        ("answer.role", ("program",)),
        ("answer.size", ("3",)),
        ("answer.made.in", ("c", "perl")),
        ("answer.*", ("role=program", 'made={"in": ["c", "perl", "c"]}', "size=3")),
        ("answer.*.in", ("made=c", "made=perl")),
        ("answer.colour", ()),
        ("answer.role.deeper", ()),
    ],
)
def test_a_path_leads_to_values(path: str, found: tuple[str, ...]) -> None:
    assert values(TAGGED, path) == found


def test_the_answer_as_it_is_and_a_field_of_that_name_before_it() -> None:
    assert values(example("spam"), "answer") == ("spam",)
    assert values(example("spam"), "answer.role") == ()
    assert values(example("spam", answer="ham"), "answer") == ("ham",)
    assert values(example("spam", **{"a.b": "dotted"}), "a.b") == ("dotted",)


def test_a_field_that_is_not_there_is_said() -> None:
    with pytest.raises(
        DataError, match=r"f:0: has no field 'tpic' to stratify, group or tell classes by; .* it has 'topic'"
    ):
        values(example("x", topic=1), "tpic")
    with pytest.raises(DataError, match=r"no row's answer has 'answer\.rolle'"):
        split([example({"role": "a"}, number) for number in range(9)], {"test": 0.3}, seed=0, stratify="answer.rolle")


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4, unique=True), max_size=40))
def test_the_class_is_the_rarest_value(held: list[list[str]]) -> None:
    names, counts, numbers = rarest(held)
    seen = Counter(value for row in held for value in row or [NONE])
    assert dict(zip(names, counts.tolist(), strict=True)) == seen
    expected = [min(row or [NONE], key=lambda value: (seen[value], value)) for row in held]
    assert [names[number] for number in numbers] == expected


def test_a_split_keeps_the_proportions_of_a_field_of_the_answer() -> None:
    rows = [example({"role": "rare" if number % 5 == 0 else "common"}, number) for number in range(100)]
    sides = split(rows, {"test": 20}, seed=1, stratify="answer.role")
    counts = Counter(values(row, "answer.role") for row, side in zip(rows, sides, strict=True) if side == "test")
    assert counts == {("rare",): 4, ("common",): 16}
