"""How prompts are put together: which rows may be examples, which stand where, and how instructions change."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base import DataError
from tunesmith.data.example import Example
from tunesmith.data.wording import read
from tunesmith.stages.prompting import optimiser as optimising
from tunesmith.stages.prompting.choice import centers, divide, ways
from tunesmith.stages.prompting.optimiser import Scored, optimise
from tunesmith.stages.prompting.proposers import Situation
from tunesmith.stages.prompting.settings import Optimiser, Prompt
from tunesmith.stages.prompting.way import Prompter, Way, instructed

SVD = {"kind": "embedding", "model": "svd"}


COLOURS = ["red", "green", "blue", "black"]


def example(number: int, prompt: str, answer: str = "red", **fields: object) -> Example:
    asked = ({"role": "user", "content": prompt},)
    return Example(f"x:{number}", asked, (({"role": "assistant", "content": answer},),), **fields)


def asks(example: Example) -> bytes:
    return read(example)[1][1]


@settings(max_examples=60)
@given(
    train=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    test=st.lists(st.integers(0, 30), max_size=10),
    development=st.integers(2, 8),
    seed=st.integers(0, 9),
)
def test_no_two_uses_of_rows_ask_the_same(train, test, development, seed):
    """Whatever is given twice, in whatever capitals: examples, development and test rows ask different things, and nothing is lost."""
    rows = [example(number, f"Shade {what}?") for number, what in enumerate(train)]
    held = [example(1000 + number, f"shade  {what}") for number, what in enumerate(test)]
    left = set(train) - set(test)
    if len(left) < development + 1:
        with pytest.raises(DataError, match=f"{len(left)} of {len(train)} training rows ask something of their own"):
            divide(rows, held, development, 1, seed)
        return
    found = divide(rows, held, development, 1, seed)
    uses = [{asks(row) for row in part} for part in (found.pool, found.development, held)]
    assert len(found.development) == development
    assert len(uses[0] | uses[1] | uses[2]) == sum(map(len, uses))
    assert len(found.pool) + len(found.development) == len(left)


def test_rows_of_one_author_have_one_use():
    rows = [example(number, f"Shade {number}?", unit=f"author {number % 9}") for number in range(45)]
    found = divide(rows, [], 7, 4, 0)
    authors = [{row.unit for row in part} for part in (found.pool, found.development)]
    assert len(found.development) == 7
    assert (len(authors[1]), authors[0] & authors[1]) == (2, set())
    assert len(found.pool) == 45 - 2 * 5
    with pytest.raises(DataError, match=r"prompt\.development=7 rows leave 0 .* prepare\.group"):
        divide([replace(row, unit="one") for row in rows], [], 7, 4, 0)


def test_answers_that_were_refused_are_no_examples():
    rows = [example(number, f"Shade {number}?", columns={"label": float(number % 2)}) for number in range(20)]
    found = divide(rows, [], 4, 1, 0)
    assert len(found.pool) == 6
    assert all(row.columns["label"] for row in (*found.pool, *found.development))


def test_the_edit_limit_falls_on_a_cosine_as_in_the_paper():
    assert [Optimiser(steps=5).limit(step) for step in range(5)] == [50, 44, 30, 16, 10]
    assert Optimiser(steps=1).limit(0) == 50


def test_no_candidate_differs_by_more_words_than_its_step_allows_and_none_is_tried_twice(tmp_path):
    near, far = "Say the colour now.", " ".join(["word"] * 60)
    spec = Optimiser(steps=3, candidates=2, words=(8, 2))
    asked: list[Way] = []

    def score(way, name):
        asked.append(way)
        merit = 10.0 * (way.instruction == near) - len(way.examples)
        return Scored(way, SimpleNamespace(point=merit), merit, 5.0, 0)

    start = score(Way("zero-shot"), "start")
    pool = [example(number, f"Shade {number}?") for number in range(9)]
    told: list[Situation] = []
    proposals = [near, far, near, "", "Say the colour now, in one word please."]
    wild = SimpleNamespace(propose=lambda situation, *_: told.append(situation) or proposals)
    best, trajectory = optimise(spec, wild, start, score, pool, common="", unit="%", seed=3, folder=tmp_path)
    assert (best.way.name, best.way.instruction) == ("optimised", near)
    assert [step["limit"] for step in trajectory] == [8, 5, 2]
    assert all(one["words_changed"] <= step["limit"] for step in trajectory for one in step["tried"])
    said = [way.instruction for way in asked if way.instruction]
    assert far not in said
    assert said.count(near) == 1 + sum(bool(way.examples) for way in asked if way.instruction == near)
    assert trajectory[0]["refused"] == 3  # the far one, the second time, and nothing at all
    assert told[1].current.instruction == near
    assert {trial.instruction for trial in told[1].past} <= {"", "Say the colour now, in one word please."}
    # what was proposed is not asked for again
    told.clear()
    assert optimise(spec, wild, start, score, pool, common="", unit="%", seed=3, folder=tmp_path)[0] == best
    assert not told


def test_example_sets_differ_in_one_place():
    generator = np.random.default_rng(0)
    for examples in ((), (3,), (1, 5, 7)):
        for found in optimising._other_examples(Way("w", examples=examples), 9, 6, generator):
            assert len(set(found)) == len(found)
            added, gone = set(found) - set(examples), set(examples) - set(found)
            assert max(len(added), len(gone)) <= 1
            assert found != examples
    assert optimising._other_examples(Way("w", similar="bm25", shots=2), 9, 6, generator) == []


def test_centers_are_as_far_apart_as_greedy_choice_makes_them():
    vectors = np.random.default_rng(1).normal(size=(40, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = centers(vectors, 6)
    assert chosen[0] == max(range(40), key=lambda row: sum(vectors[row] @ other for other in vectors))
    for place in range(1, 6):  # the slow way
        apart = [min(1 - vectors[row] @ vectors[other] for other in chosen[:place]) for row in range(40)]
        assert chosen[place] == int(np.argmax(apart))
    assert sorted(centers(vectors[:3], 9)) == [0, 1, 2]


def test_an_instruction_stands_in_the_place_of_what_all_rows_have_and_before_what_is_a_rows_own():
    asked = [{"role": "user", "content": "?"}]
    own = [{"role": "system", "content": "Be brief."}, *asked]
    system = {"role": "system", "content": "New."}
    assert instructed(asked, "New.", None) == instructed(own, "New.", "Be brief.") == [system, *asked]
    assert instructed(own, "New.", None)[0]["content"] == "New.\n\nBe brief."
    assert instructed(own, "", None) == own


@pytest.fixture(scope="module")
def prompter(build):
    loaded = build()
    pool = [example(number, f"What colour is thing {number} of kind {'abc'[number % 3]}?", COLOURS[number % 4]) for number in range(12)]  # fmt: skip
    return Prompter(loaded, pool, Prompt(retrievers=[{"kind": "bm25"}, SVD]).retrievers, None, 8)


def test_the_example_most_like_a_row_stands_last_and_what_does_not_fit_is_left_out(prompter):
    asked = [example(99, "What colour is thing 7 of kind b?")]
    way = Way("bm25", similar="bm25", shots=2)
    text = prompter.renderer.decode(prompter.requests(way, asked).prompts[0])
    assert text.count("What colour") == 3
    assert text.rindex("thing 7 of kind b?\n") > text.index("thing 7 of kind b")  # the row's own twin, then the row
    every = Way("all", examples=tuple(range(12)))
    found = prompter.requests(every, asked)
    assert found.shortened == 1
    assert len(found.prompts[0]) <= prompter.room == 256 - 8
    kept = prompter.renderer.decode(found.prompts[0])
    assert "thing 11 " in kept
    assert "thing 0 " not in kept
    assert found.tokens == len(found.prompts[0])


def test_each_count_of_shots_is_a_way_of_its_own_and_smaller_sets_are_part_of_larger_ones(prompter):
    spec = Prompt(ways=["zero-shot", "random", "similar", "diverse"], shots=[1, 3], retrievers=[{"kind": "bm25"}, SVD])
    found = ways(spec, 12, prompter.indexes, seed=5)
    assert [way.name for way in found] == [
        "zero-shot", "random, 1 shots", "random, 3 shots", "bm25, 1 shots", "bm25, 3 shots", "embedding, 1 shots", "embedding, 3 shots",
        "diverse, 1 shots", "diverse, 3 shots",
    ]  # fmt: skip
    assert found[2].examples[:1] == found[1].examples
    assert found != ways(spec, 12, prompter.indexes, seed=6)
