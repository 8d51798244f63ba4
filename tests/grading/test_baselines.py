"""Baselines learn from training rows only, answer with the fields asked, and say when they do not apply."""

import gzip
import json
from pathlib import Path

import pytest
from graded import example

from tunesmith.data.example import Example
from tunesmith.grading import HEADLINE
from tunesmith.grading.baselines import majority, svm
from tunesmith.grading.exact import Exact
from tunesmith.grading.json_fields import JsonFields

DEBTAGS = Path(__file__).parents[2] / "examples" / "debtags"


TRAIN = [
    example(
        {"colour": colour, "count": index % 2, **({"sour": True} if fruit == "lemon" else {})},
        f"{fruit} number {index}",
    )
    for index in range(8)
    for fruit, colour in (("cherry", "red"), ("lemon", "yellow"), ("strawberry", "red"))
]
TEST = [
    example({"colour": "yellow", "sour": True}, "a lemon"),
    example({"colour": "red", "taste": "sweet"}, "a cherry"),
]


def test_majority_answers_exactly_the_fields_asked() -> None:
    found = majority(TRAIN, TEST)
    assert found.answers is not None
    assert [json.loads(answer) for answer in found.answers] == [
        {"colour": "red", "sour": True},
        {"colour": "red", "taste": None},
    ]
    assert "24 training rows" in found.reason


def test_svm_reads_the_prompt_and_says_how_it_was_chosen() -> None:
    found = svm(TRAIN, TEST)
    assert found.answers is not None
    assert [json.loads(answer) for answer in found.answers] == [
        {"colour": "yellow", "sour": True},
        {"colour": "red", "taste": None},
    ]
    assert "cross-validation on 24 training rows" in found.reason


def test_a_short_label_is_one_class() -> None:
    train = [
        example(label, f"{word} film {index}")
        for index in range(6)
        for word, label in (("good", "yes"), ("bad", "no"), ("fine", "yes"))
    ]
    test = [example("no", "a bad one"), example("yes", "a good one")]
    assert majority(train, test).answers == ["yes", "yes"]
    answers = svm(train, test).answers
    assert answers is not None
    assert Exact().figures(test, answers)[HEADLINE].point == 100.0


@pytest.mark.parametrize("baseline", [majority, svm])
def test_free_text_and_nested_objects_have_no_baseline(baseline) -> None:  # type: ignore[no-untyped-def]
    for gold in ("a story of {}", '{{"nested": {{"number": {}}}}}'):
        train = [example(gold.format(index), "tell") for index in range(10)]
        found = baseline(train, train)
        assert found.answers is None
        assert "10 distinct in 10 rows" in found.reason
    assert baseline([], TEST).answers is None


def test_prompts_without_a_word_do_no_harm() -> None:
    train = [example({"answer": index % 2}, "1 + 1") for index in range(12)]
    assert svm(train, train[:2]).answers is not None


def test_the_baselines_on_the_bundled_example_are_no_straw_men() -> None:
    splits = {}
    for name in ("train", "test"):
        with gzip.open(DEBTAGS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line)["messages"] for line in lines]
        splits[name] = [
            Example(f"{name}:{number}", (row[0],), ((row[1],),)) for number, row in enumerate(rows[:200], 1)
        ]
    shares = []
    for baseline in (majority, svm):
        answers = baseline(splits["train"], splits["test"]).answers
        assert answers is not None
        shares.append(JsonFields().figures(splits["test"], answers)[HEADLINE].point)
    assert 45 < shares[0] < 60
    assert shares[1] > 70


def test_answers_that_nobody_wants_are_not_learnt() -> None:
    def judged(number: int, answer: str, label: float) -> Example:
        user, assistant = {"role": "user", "content": f"shade {number}"}, {"role": "assistant", "content": answer}
        return Example(f"t:{number}", (user,), ((assistant,),), columns={"label": label})

    rows = [judged(number, "green" if number % 3 else "red", float(number % 3 == 0)) for number in range(30)]
    test = [judged(99, "red", 1.0)]
    assert majority(rows, test).answers == svm(rows, test).answers == ["red"]
