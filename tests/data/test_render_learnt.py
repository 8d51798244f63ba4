"""What of a rendered row is learnt: the assistant's turns with their ends, calls that the template shows, and nothing else unless told."""

import json

import numpy as np
import pytest
from chats import CHATML_WITH_TOOLS, assistant, learnt, renderer_with, user

from tunesmith.base import DataError
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_every_turn_of_the_assistant_in_the_answer_is_learnt_with_its_end_and_nothing_else(renderer):
    prompt = (user("one?"), assistant("first"), user("two?"))
    answer = (assistant("second"), user("three?"), assistant("third"))
    row = renderer.row(Example("f:1", prompt, (answer,)))
    end = renderer.tokenizer.decode([row.sequences[0].tokens[-1]])
    text = learnt(renderer, row).replace(" ", "")
    assert text == f"second{end}third{end}"
    assert row.origin == "f:1"


def test_a_turn_of_weight_0_is_read_and_not_learnt(renderer):
    turns = (assistant("red"), user("And?"), assistant("green"))

    def of(*weights):
        answer = [{**turn, "weight": weight} if weight is not None else turn for turn, weight in zip(turns, weights, strict=True)]  # fmt: skip
        return renderer.row(Example("a:1", (user("Shade?"),), (tuple(answer),))).sequences[0]

    whole, last = of(1, None, 1), of(0, None, None)
    assert np.array_equal(whole.tokens, last.tokens)
    assert renderer.decode(last.tokens[last.learn]).lstrip().startswith("green")
    assert renderer.decode(whole.tokens[whole.learn]).lstrip().startswith("red")
    with pytest.raises(DataError):
        of(0, None, 0)


def test_a_turn_of_weight_0_is_not_learnt_where_all_others_are(smollm_tokenizer):
    renderer = Renderer(smollm_tokenizer, "all")
    answer = ({**assistant("red"), "weight": 0}, user("And?"), assistant("green"))
    (found,) = renderer.row(Example("a:1", (user("Shade?"),), (answer,))).sequences
    learnt_text = renderer.decode(found.tokens[found.learn])
    assert "Shade?" in learnt_text
    assert "green" in learnt_text
    assert "red" not in learnt_text


CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "content": "rain"}


@pytest.mark.parametrize(
    ("template", "answer", "name"),
    [
        (None, (CALLING, RESULT, assistant("rain")), "tool_calls"),
        (None, ({**assistant("rain"), "reasoning_content": "clouds"},), "reasoning_content"),
        (CHATML_WITH_TOOLS, (CALLING, RESULT, assistant("rain")), None),
        (CHATML_WITH_TOOLS, ({**assistant("rain"), "thinking": "clouds"},), "thinking"),
        (None, ({**assistant("a"), "reasoning_content": "b"}, user("And?"), assistant("c")), None),
    ],
    ids=[
        "calls dropped",
        "reasoning dropped",
        "calls shown",
        "thinking dropped",
        "an earlier turn's, which templates leave out",
    ],
)
def test_what_a_template_drops_of_an_answer_is_not_learnt_in_silence(smollm_tokenizer, template, answer, name):
    renderer = renderer_with(template or smollm_tokenizer.chat_template, smollm_tokenizer)
    example = Example("f:1", (user("Weather?"),), (answer,))
    if name is None:
        assert learnt(renderer, renderer.row(example))
    else:
        with pytest.raises(DataError, match=f"chat template ignores {name}"):
            renderer.row(example)


def test_supervise_all_learns_all_but_the_first_token(smollm_tokenizer):
    example = Example("f:1", (user("one?"),), ((assistant("first"),),))
    sequence = Renderer(smollm_tokenizer, "all").row(example).sequences[0]
    assert not sequence.learn[0]
    assert sequence.learn[1:].all()
    answers = Renderer(smollm_tokenizer).row(example).sequences[0]
    assert sequence.tokens[: len(answers)].tolist() == answers.tokens.tolist()


def test_several_answers_share_their_prompt(renderer):
    example = Example("f:1", (user("q"),), ((assistant("good"),), (assistant("bad"),)), columns={"label": 1.0})
    row = renderer.row(example)
    length = len(renderer.prompt(example.prompt))
    assert np.array_equal(row.sequences[0].tokens[:length], row.sequences[1].tokens[:length])
    assert "good" in learnt(renderer, row, 0)
    assert "bad" in learnt(renderer, row, 1)
    assert row.columns == {"label": 1.0}


class TestTools:
    def test_are_rendered_where_the_template_does(self, chatml):
        row = chatml.row(Example("f:1", (user("weather?"),), ((assistant("rain"),),), tools=(WEATHER,)))
        text = chatml.tokenizer.decode(row.sequences[0].tokens)
        assert json.dumps(WEATHER) in text
        assert learnt(chatml, row) == "rain<|im_end|>"

    def test_a_call_is_learnt(self, chatml):
        call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        row = chatml.row(Example("f:1", (user("?"),), ((message,),), tools=(WEATHER,)))
        assert '"name": "weather"' in learnt(chatml, row)

    def test_are_refused_where_the_template_drops_them(self, smollm_tokenizer):
        """Also where a message happens to hold the tool's name."""
        with pytest.raises(DataError, match="template ignores tools"):
            Renderer(smollm_tokenizer).row(
                Example("f:1", (user("the weather?"),), ((assistant("rain"),),), tools=(WEATHER,))
            )


def test_a_row_without_anything_to_learn_is_refused(renderer):
    for example in (Example("f:1", text=""), Example("f:1", (user("a"),), ((),))):
        with pytest.raises(DataError, match="nothing to learn"):
            renderer.row(example)
