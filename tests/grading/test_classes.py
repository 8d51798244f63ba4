"""Figures of unequal classes are scikit-learn's, have intervals, and are paired like any other."""

import json
from dataclasses import replace

import numpy as np
import pytest
from graded import example
from pydantic import ValidationError
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

from tunesmith.base import DataError
from tunesmith.grading import HEADLINE
from tunesmith.grading.classes import Classes
from tunesmith.grading.confusion import MOST_CLASSES
from tunesmith.grading.exact import Exact
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.grading.statistics import difference, interval

CLASSES = ["Ham", "spam", "scam"]


def drawn(count: int, seed: int, *others: str) -> list[str]:
    chances = np.array([0.85, 0.12, 0.03, *(0.05 for _ in others)])
    return [
        str(name) for name in np.random.default_rng(seed).choice([*CLASSES, *others], count, p=chances / chances.sum())
    ]


TRUTHS, GUESSES = drawn(300, 0), drawn(300, 1)
GUESSES[::2] = TRUTHS[::2]


def test_every_figure_is_scikit_learns() -> None:
    figures = Classes().figures([example(truth) for truth in TRUTHS], GUESSES)
    assert figures[HEADLINE].point == pytest.approx(100 * f1_score(TRUTHS, GUESSES, average="macro"))
    assert figures["micro F1"].point == pytest.approx(100 * f1_score(TRUTHS, GUESSES, average="micro"))
    assert figures["kappa"].point == pytest.approx(100 * cohen_kappa_score(TRUTHS, GUESSES))
    for name in CLASSES:
        if TRUTHS.count(name) >= 10:
            for said, function in (("precision", precision_score), ("recall", recall_score), ("F1", f1_score)):
                expected = function(TRUTHS, GUESSES, labels=[name], average="micro")
                assert figures[f"{name.casefold()}: {said}"].point == pytest.approx(100 * expected)
    told = {name.split(":")[0] for name in figures if name.endswith(": recall")}
    assert told == {name.casefold() for name in CLASSES if TRUTHS.count(name) >= 10} != {"ham"}


def test_answers_outside_the_classes_are_wrong_and_nothing_else() -> None:
    guesses = drawn(300, 2, "other", "")
    figures = Classes().figures([example(truth) for truth in TRUTHS], guesses)
    assert figures[HEADLINE].point == pytest.approx(100 * f1_score(TRUTHS, guesses, labels=CLASSES, average="macro"))
    assert figures["micro F1"].point == pytest.approx(100 * np.mean(np.array(TRUTHS) == np.array(guesses)))
    assert figures["kappa"].point == pytest.approx(100 * cohen_kappa_score(TRUTHS, guesses))


def test_guessing_the_commonest_class_shows() -> None:
    truths = ["ham"] * 95 + ["spam"] * 5
    figures = Classes().figures([example(truth) for truth in truths], ["ham"] * 100)
    assert figures["micro F1"].point == 95
    assert figures[HEADLINE].point == pytest.approx(100 * (2 * 95 / 195) / 2)
    assert figures["kappa"].point == 0
    assert (figures["rare recall"].point, figures["rare recall"].rows) == (0, 5)


def test_fields_of_an_object_are_classes_of_their_own() -> None:
    """By hand: three rows ask for a role, two for a language; the surplus field of the last answer is not asked for."""
    golds = [{"role": "a", "in": "c"}, {"role": "b", "in": "c"}, {"role": "a"}]
    answers = ['{"role": "A", "in": "c"}', 'It is {"role": "a", "in": "perl"}', '{"role": "a", "in": "c"}']
    figures = Classes(by="answer.*").figures([example(gold) for gold in golds], answers)
    assert figures["micro F1"].point == pytest.approx(100 * 3 / 5)
    f1 = {"role=a": 2 * 2 / (3 + 2), "role=b": 0, "in=c": 2 * 1 / (1 + 2)}
    assert figures[HEADLINE].point == pytest.approx(100 * sum(f1.values()) / 3)
    by_chance = (2 * 3 / 9) * 3 + (2 * 1 / 4) * 2  # roles: always a; languages: c once in two
    assert figures["kappa"].point == pytest.approx(100 * (3 - by_chance) / (5 - by_chance))
    one = Classes(by="answer.role").figures([example(gold) for gold in golds], answers)
    assert one["micro F1"].point == pytest.approx(100 * 2 / 3)


def test_lists_are_several_values_and_have_no_kappa() -> None:
    golds = [{"tags": ["x", "y"]}, {"tags": ["x"]}, {"tags": []}]
    answers = ['{"tags": ["y", "z"]}', '{"tags": "x"}', '{"tags": ["x"]}']
    grader = Classes(by="answer.tags")
    figures = grader.figures([example(gold) for gold in golds], answers)
    truths, guesses = np.array([[1, 1, 0], [1, 0, 0]]), np.array([[0, 1, 1], [1, 0, 0]])
    assert figures["micro F1"].point == pytest.approx(100 * f1_score(truths, guesses, average="micro"))
    assert figures[HEADLINE].point == pytest.approx(100 * f1_score(truths[:, :2], guesses[:, :2], average="macro"))
    assert "kappa" not in figures
    assert grader.score(answers[0], example(golds[0])).share == 0.5
    assert grader.score(answers[0], example(golds[0])).text == "expected x"


def test_intervals_and_paired_differences_are_those_of_any_figure() -> None:
    rows = [example(truth) for truth in TRUTHS]
    better, worse = Classes().figures(rows, GUESSES), Classes().figures(rows, ["Ham"] * 300)
    for name in (HEADLINE, "kappa"):
        found, apart = interval(better[name]), difference(better[name], worse[name])
        assert found.low < found.value < found.high
        assert apart.value == pytest.approx(better[name].point - worse[name].point)
        assert 0 < apart.low < apart.value < apart.high
        assert apart.p < 0.01


def test_the_bootstrap_of_macro_f1_is_that_of_its_definition() -> None:
    """Against drawing rows again and calling scikit-learn: the middle of the replicates and their spread."""
    figure = Classes().figures([example(truth) for truth in TRUTHS], GUESSES)[HEADLINE]
    generator = np.random.default_rng(3)
    truths, guesses, drawn_again = np.array(TRUTHS), np.array(GUESSES), []
    for _ in range(300):
        rows = generator.integers(0, 300, 300)
        labels = sorted(set(truths[rows]))
        drawn_again.append(100 * f1_score(truths[rows], guesses[rows], labels=labels, average="macro", zero_division=0))
    found = interval(figure)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(drawn_again), rel=0.25)


def test_results_are_split_by_a_field_of_the_answer() -> None:
    roles = ["program"] * 20 + ["library"] * 12 + ["rare"] * 3
    rows = [replace(example({"role": role}, topic=["x", "y"]), origin=f"t:{n}") for n, role in enumerate(roles)]
    answers = ['{"role": "program"}'] * len(rows)
    found = scoreboard(
        rows, {"tuned": answers}, [Exact(), Classes(by="answer.role")], slices=("answer.role", "topic", "absent")
    )
    slices = found["graders"]["exact"]["slices"]
    assert {name: each["n"] for name, each in slices.items()} == {
        "answer.role=program": 20,
        "answer.role=library": 12,
        "topic=x": 35,
        "topic=y": 35,
    }
    assert slices["answer.role=library"]["systems"]["tuned"]["value"] == 0
    assert json.dumps(found, allow_nan=False)


def test_what_has_no_classes_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"write answer, answer\.FIELD"):
        Classes(by="topic")
    with pytest.raises(DataError, match=r"t:1: 'classes' by 'answer\.role' needs a JSON object"):
        Classes(by="answer.role").figures([example("spam")], ["spam"])
    with pytest.raises(DataError, match=r"finds no 'answer\.colour' in 1 rows"):
        Classes(by="answer.colour").figures([example({"role": "a"})], ["{}"])
    many = [example(f"c{number}") for number in range(MOST_CLASSES + 1)]
    with pytest.raises(DataError, match=r"t:1: 'classes' by 'answer' finds 501 classes in 501 rows, .* 500 at most"):
        Classes().check(many)
    Classes().check(many[1:])
