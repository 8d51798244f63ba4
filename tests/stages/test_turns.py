"""Of a conversation of several turns the model is asked for the last one, with those before it as they are written, whoever asks."""

import numpy as np
import pytest

from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.grading.baselines import _text
from tunesmith.models.generate import Sampling
from tunesmith.models.load import load
from tunesmith.stages.judge import answer, with_shots
from tunesmith.stages.prompting.way import question
from tunesmith.stages.sample import Sample, Try
from tunesmith.training.rollouts import Rollouts, imagined

USER, FIRST, AGAIN, LAST = (
    {"role": "user", "content": "Shade 1?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "And shade 2?"},
    {"role": "assistant", "content": "green"},
)
TURNS = Example("a.jsonl:1", (USER,), ((FIRST, AGAIN, LAST),))
FLAT = Example("a.jsonl:1", (USER, FIRST, AGAIN), ((LAST,),))
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}  # fmt: skip
RESULT = {"role": "tool", "content": "blue", "name": "f"}


@pytest.mark.parametrize(
    ("example", "asked", "gold"),
    [
        (FLAT, (USER, FIRST, AGAIN), "green"),
        (TURNS, (USER, FIRST, AGAIN), "green"),
        (Example("x", (USER,), ((CALL, RESULT, LAST),)), (USER, CALL, RESULT), "green"),
        (Example("x", (USER,), ((FIRST, AGAIN),)), (USER,), "red"),
        (Example("x", (USER,), ((FIRST,), (LAST,))), (USER,), "red"),
        (Example("x", text="plain"), (), "plain"),
        (Example("x", (USER,)), (USER,), ""),
    ],
    ids=["one turn", "several", "a call", "a user at the end", "a pair", "text", "no answer"],
)
def test_what_is_asked_ends_before_what_it_is_compared_with(example, asked, gold):
    assert example.asked == asked
    assert example.gold == gold


def test_everyone_asks_for_the_same_turn(short_tokenizer):
    assert with_shots(TURNS, ()) == with_shots(FLAT, ()) == [USER, FIRST, AGAIN]
    assert question(TURNS) == question(FLAT)
    assert _text(TURNS) == _text(FLAT)
    renderer, spec = (
        Renderer(short_tokenizer),
        Rollouts(samples=2, max_tokens=3, rewards=[{"grader": {"kind": "exact"}}]),
    )
    sizes = [[len(one) for one in imagined([renderer.row(each)], spec)[0].sequences] for each in (TURNS, FLAT)]
    assert sizes == [[len(renderer.prompt(FLAT.prompt)) + 3] * 2] * 2


def test_the_model_hears_the_turns_before(tiny_folder):
    loaded = load(str(tiny_folder), "fp32")
    of_turns, of_flat, of_first = answer(
        loaded, [TURNS, FLAT, Example("x", (USER,), ((FIRST,),))], Sampling(max_tokens=6)
    )
    assert of_turns == of_flat != of_first


def test_a_pair_of_a_sampled_answer_is_one_of_the_last_turn():
    (pair,) = Sample(keep="pairs").kept(TURNS, [Try("pink", 1, True, -1.0, 0.0)], gold=1.0)
    assert pair["prompt"] == [USER, FIRST, AGAIN]
    assert pair["chosen"] == [LAST]
    assert pair["rejected"] == [{"role": "assistant", "content": "pink"}]
    assert np.isclose(pair["reward_chosen"], 1.0)
