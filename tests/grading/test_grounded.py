"""Accuracy, completeness and grounding on answers worked out by hand; a drop that is shown keeps a model back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.documents import Question
from tunesmith.data.example import Example
from tunesmith.grading.exact import Exact
from tunesmith.grading.gate import Gate
from tunesmith.grading.grounded import Asked, accuracy, compared, completeness, contains, content, grounding, normal
from tunesmith.grading.scoreboard import scoreboard

PASSAGES = ("The ferry Marit carries 180 passengers and 24 cars.", "A dog costs 3 crowns.")


def asked(*answers: str, facts: tuple[str, ...] = (), question: str = "What does the ferry carry?", found: bool = True) -> Asked:  # fmt: skip
    return Asked(Question("q:1", question, answers, facts), PASSAGES, found)


def test_words_are_compared_without_case_punctuation_and_articles():
    assert normal("The  Fox-Tunnel, 1,024 m; (a) \u201eLIGHT\u201c!") == ["foxtunnel", "1024", "m", "light"]
    assert content("It was built in the year 1874.") == ["built", "year", "1874"]
    assert contains("It has 24 cars, I think.", "24 Cars")
    assert not contains("It has 240 cars", "24 cars")
    assert not contains("cars 24", "24 cars")
    assert not contains("anything", "the")


@pytest.mark.parametrize(
    ("answer", "contained", "exact", "f1"),
    [
        ("180 passengers", 1, 1, 1),
        ("The 180 passengers!", 1, 1, 1),
        ("It carries 180 passengers.", 1, 0, 2 * 2 / (4 + 2)),
        ("passengers 180", 0, 0, 1),
        ("180 180", 0, 0, 2 * 1 / (2 + 2)),
        ("many people", 1, 1, 1),  # the other right answer
        ("", 0, 0, 0),
    ],
)
def test_accuracy(answer, contained, exact, f1):
    row = asked("180 passengers", "many people")
    assert [accuracy(answer, row, match) for match in ("contained", "exact", "f1")] == pytest.approx([contained, exact, f1])  # fmt: skip


def test_completeness_is_the_share_of_facts_or_of_the_right_answers_words():
    with_facts = asked("x", facts=("180 passengers", "24 cars"))
    assert completeness("Marit carries 180 passengers and 24 cars", with_facts) == 1
    assert completeness("24 cars", with_facts) == 0.5
    assert completeness("passengers: 180", with_facts) == 0
    without = asked("180 passengers and 24 cars", "nobody")
    assert completeness("cars, passengers", without) == 0.5
    assert completeness("nobody", without) == 1
    assert completeness("", without) == 0
    assert completeness("no", asked("no")) == 1  # no content word: all words count


def test_grounding_is_the_share_of_what_is_claimed_that_the_passages_hold():
    row = asked("x")
    assert grounding("It can carry 180 passengers.", row) == 1  # carry is the question's, it and can say nothing
    assert grounding("180 horses, 24 horses", row) == 0.5
    assert grounding("", row) is None
    assert grounding("The ferry", row) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_measures_stay_within_0_and_1(answer, gold):
    row = asked(gold)
    found = [accuracy(answer, row, match) for match in ("contained", "exact", "f1")] + [completeness(answer, row)]
    assert all(0 <= value <= 1 for value in found)
    claimed = grounding(answer, row)
    assert claimed is None or 0 <= claimed <= 1


def board(count: int) -> dict:
    """Tuned beats base on the task itself."""
    rows = [Example(f"t:{n}", ({"role": "user", "content": "?"},), (({"role": "assistant", "content": "yes"},),)) for n in range(count)]  # fmt: skip
    return scoreboard(rows, {"base": ["no"] * count, "tuned": ["yes"] * count}, (Exact(),))


def documents(right_before: int, right_after: int, count: int = 40) -> dict:
    rows = [asked("180 passengers", found=number % 4 != 0) for number in range(count)]

    def said(right: int) -> list[str]:
        return ["It carries 180 passengers"] * right + ["It carries 200 horses"] * (count - right)

    return {"bm25": {"about": "BM25", **compared(rows, said(right_before), said(right_after), "contained", 0)}}


def test_a_drop_that_is_shown_blocks_and_one_that_may_be_chance_does_not():
    gate = Gate(margin=None)
    dropped = gate(board(40), None, documents(36, 12))
    assert not dropped["promote"]
    assert dropped["reasons"][0].startswith("tuned beats base")
    assert dropped["reasons"][1].startswith("tuned answers worse from passages found by bm25: accuracy -60.0 points (95 % interval -")  # fmt: skip
    assert "grounding -40.0 points" in dropped["reasons"][1]
    assert "were found for 75 % of questions" in dropped["reasons"][1]
    for before, after in ((36, 35), (20, 36)):
        kept = gate(board(40), None, documents(before, after))
        assert kept["promote"]
        assert "not shown to answer worse from passages found by bm25" in kept["reasons"][1]
    assert Gate(margin=None, retrieval=False)(board(40), None, documents(36, 12))["promote"]


def test_too_few_questions_decide_nothing_unless_they_show_a_drop():
    few = Gate(margin=None)(board(40), None, documents(15, 15, 20))
    assert not few["promote"]
    assert few["reasons"][1] == "Answers from passages found by bm25 rest on 20 questions; a decision needs 30."
    assert Gate(margin=None, rows=20)(board(40), None, documents(15, 15, 20))["promote"]
    assert "answers worse" in Gate(margin=None)(board(40), None, documents(20, 4, 20))["reasons"][1]


def test_recall_and_accuracy_where_the_passages_held_the_answer():
    found = documents(30, 10)["bm25"]
    assert (found["recall"]["value"], found["recall"]["n"], found["questions"]) == (75, 40, 40)
    held = [number for number in range(40) if number % 4]
    assert found["accuracy_where"]["found"]["base"]["value"] == pytest.approx(100 * sum(n < 30 for n in held) / 30)
    assert found["accuracy_where"]["missed"]["tuned"]["value"] == pytest.approx(100 * 3 / 10)
    apart = found["measures"]["accuracy"]["difference"]
    assert (apart["value"], apart["n"]) == (-50, 40)
    assert apart["low"] < -50 < apart["high"] < 0


def test_models_that_say_nothing_cannot_be_compared_by_grounding():
    found = compared([asked("x")] * 3, ["", "", ""], ["a", "", ""], "contained", 0)
    assert found["measures"]["grounding"] == {"base": None, "tuned": None, "difference": None}
    assert found["measures"]["accuracy"]["difference"]["value"] == 0
