"""Average precision is scikit-learn's, has intervals, and is paired by what each system says of each row."""

import json
from dataclasses import replace

import numpy as np
import pytest
from graded import example
from pydantic import ValidationError
from sklearn.metrics import average_precision_score

from tunesmith.base import DataError
from tunesmith.data.example import Example
from tunesmith.grading import HEADLINE
from tunesmith.grading.average_precision import AveragePrecision
from tunesmith.grading.ranked import average_precision
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.grading.statistics import difference, interval, replicates

CLASSES = ("ham", "scam", "spam")
ROWS = 120


def chances(truths: list[str], seed: int, help_: float) -> list[dict[str, dict[str, float]]]:
    """Probabilities that favour what is right by `help_`, rounded so that some are equal."""
    drawn = np.random.default_rng(seed).random((len(truths), len(CLASSES)))
    drawn += help_ * np.array([[name == truth for name in CLASSES] for truth in truths])
    told = np.round(drawn / drawn.sum(1, keepdims=True), 2)
    return [{"": dict(zip(CLASSES, row, strict=True))} for row in told.tolist()]


TRUTHS = [str(name) for name in np.random.default_rng(0).choice(CLASSES, ROWS, p=[0.7, 0.2, 0.1])]
EXAMPLES = [example(truth) for truth in TRUTHS]
GOOD, POOR = chances(TRUTHS, 1, 0.6), chances(TRUTHS, 2, 0.2)


def by_scikit_learn(told, rows=slice(None), name=None):
    names = [name] if name else CLASSES
    truth = np.array(TRUTHS)[rows]
    return 100 * np.mean(
        [average_precision_score(truth == each, np.array([row[""][each] for row in told])[rows]) for each in names]
    )


def test_every_figure_is_scikit_learns() -> None:
    figures = AveragePrecision().figures(EXAMPLES, GOOD)
    assert figures[HEADLINE].point == pytest.approx(by_scikit_learn(GOOD))
    assert figures["by chance"].point == pytest.approx(100 / 3)
    for name in CLASSES:
        assert figures[f"{name}: average precision"].point == pytest.approx(by_scikit_learn(GOOD, name=name))
        assert figures[f"{name}: prevalence"].point == pytest.approx(100 * TRUTHS.count(name) / ROWS)
        assert figures[f"{name}: average precision"].rows == TRUTHS.count(name)


def test_rows_that_count_more_are_rows_given_more_often() -> None:
    generator = np.random.default_rng(3)
    scores, truths = np.round(generator.random(40), 1), (generator.random(40) < 0.3).astype(float)
    weights = generator.integers(0, 4, (5, 40)).astype(float)
    expected = [average_precision_score(truths, scores, sample_weight=each) for each in weights]
    assert average_precision(scores, truths, weights) == pytest.approx(expected)
    assert np.isnan(average_precision(scores, np.zeros(40), weights)).all()


def test_its_bootstrap_and_permutations_are_those_of_drawing_rows_again() -> None:
    good, poor = (AveragePrecision().figures(EXAMPLES, told)[HEADLINE] for told in (GOOD, POOR))
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, ROWS, size=(20, ROWS))
    assert replicates(good, resamples=20) == pytest.approx([by_scikit_learn(GOOD, rows) for rows in drawn])
    swapped = generator.integers(0, 2, size=(6, ROWS))
    both = good.beside(poor)
    for swap, found in zip(swapped, both.over(np.hstack([1.0 - swapped, swapped])), strict=True):
        mixed = [POOR[row] if swap[row] else GOOD[row] for row in range(ROWS)]
        assert found == pytest.approx(by_scikit_learn(mixed))
    apart = difference(good, poor, resamples=500)
    assert apart.value == pytest.approx(by_scikit_learn(GOOD) - by_scikit_learn(POOR))
    assert 0 < apart.low < apart.value < apart.high
    assert apart.p < 0.01
    assert difference(good, good, resamples=200).p == 1
    assert interval(good).low < by_scikit_learn(GOOD) < interval(good).high


def test_a_field_is_judged_on_the_rows_that_have_it() -> None:
    """By hand: `in` is asked of three rows; of its two classes c is ranked 1, 3 (of 3) and perl 1."""
    golds = [{"role": "a", "in": "c"}, {"role": "b", "in": "c"}, {"role": "a", "in": "Perl"}, {"role": "b"}]
    sure = {"role": [0.9, 0.2, 0.8, 0.1], "in": [0.9, 0.3, 0.4]}
    told = [
        {
            name: dict(zip(("a", "b") if name == "role" else ("c", "perl"), (p[row], 1 - p[row]), strict=True))
            for name, p in sure.items()
            if row < len(p)
        }
        for row in range(4)
    ]
    figures = AveragePrecision(by="answer.*").figures([example(gold) for gold in golds], told)
    role = 1.0
    c, perl = (1 / 1 + 2 / 3) / 2, 1 / 2
    assert figures[HEADLINE].point == pytest.approx(100 * (role + role + c + perl) / 4)
    assert figures["by chance"].point == pytest.approx(100 * (1 / 2 + 1 / 2 + 2 / 3 + 1 / 3) / 4)


def test_what_is_asked_is_the_right_answer_with_each_class_in_its_place() -> None:
    rows = [
        example('{ "role":"b",\n "in": {"language": "c"}}'),
        example({"role": "zzz"}),  # the one of three that is not drawn
        example({"role": "A", "in": {"language": 3}}),
    ]
    asked = AveragePrecision(by="answer.role", rows=2).asked(rows)
    assert asked == [
        {
            "": {
                "a": '{ "role":"A",\n "in": {"language": "c"}}',
                "b": '{ "role":"b",\n "in": {"language": "c"}}',
            }
        },
        {},
        {"": {"a": json.dumps({"role": "A", "in": {"language": 3}}), "b": '{"role": "b", "in": {"language": 3}}'}},
    ]
    below = AveragePrecision(by="answer.in.*").asked(rows)
    assert list(below[0]) == ["language"]
    assert below[0]["language"]["3"] == '{ "role":"b",\n "in": {"language": 3}}'
    assert below[1] == {}
    assert AveragePrecision().asked([example("Spam"), example("ham"), example("spam")])[1] == {
        "": {"ham": "ham", "spam": "Spam"}
    }


def test_rows_that_were_not_asked_say_nothing() -> None:
    few = [*GOOD[:50], *({} for _ in range(ROWS - 50))]
    alone = AveragePrecision().figures(EXAMPLES[:50], GOOD[:50])[HEADLINE]
    assert AveragePrecision().figures(EXAMPLES, few)[HEADLINE].point == pytest.approx(alone.point)
    rows = [Example(each.origin, each.prompt, each.answers, meta={"late": place >= 50}) for place, each in enumerate(EXAMPLES)]  # fmt: skip
    found = scoreboard(rows, {}, [AveragePrecision()], chances={"tuned": few, "base": few}, slices=("late",))
    assert list(found["graders"]["average_precision"]["slices"]) == ["late=false"]
    assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("grader", "golds", "message"),
    [
        (AveragePrecision(by="answer.x"), [{"x": ["a", "b"]}], r't:1: \["a", "b"\] is a list'),
        (AveragePrecision(by="answer.x"), ["spam"], r"t:1: 'average_precision' by 'answer\.x' needs a JSON object"),
        (AveragePrecision(by="answer.x"), [{"x": 1}] * 3, r"finds 1 classes in 3 rows; mend `by`"),
        (AveragePrecision(classes=2), ["a", "b", "c"], r"finds 3 classes in 3 rows, which is more than 2"),
    ],
)
def test_what_cannot_be_asked_is_refused(grader, golds, message) -> None:
    with pytest.raises(DataError, match=message):
        grader.asked([example(gold) for gold in golds])
    with pytest.raises(ValidationError, match=r"write answer, answer\.FIELD"):
        AveragePrecision(by="topic")


def test_rows_of_one_author_are_drawn_as_one() -> None:
    authors = [f"author {number % 12}" for number in range(ROWS)]
    tied = [replace(one, origin=f"t:{number}", unit=authors[number]) for number, one in enumerate(EXAMPLES)]
    apart = [replace(one, unit="") for one in tied]
    figure, loose = (AveragePrecision().graded(rows, GOOD)[HEADLINE] for rows in (tied, apart))
    assert figure.point == loose.point
    assert (figure.units, loose.units) == (12, ROWS)
    again = replicates(figure, seed=3, resamples=20)
    drawn = np.random.default_rng(3).integers(0, 12, (20, 12))
    for value, of in zip(again, drawn, strict=True):
        rows = np.concatenate([np.arange(number, ROWS, 12) for number in of])
        assert value == pytest.approx(by_scikit_learn(GOOD, rows))
