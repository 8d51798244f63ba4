import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base import DataError
from tunesmith.data import render
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer

CHATML_WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}\n<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% set offset = 0 %}{% set system = '' %}"
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% set offset = 1 %}{% endif %}"
    "{% for message in messages[offset:] %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LAST_THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: what the assistant said last is rendered otherwise than what it said before."""
TEMPLATES = {"own": None, "chatml": CHATML_WITH_TOOLS, "llama-2": LLAMA_2}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<filename>"]

ordinary = st.text(
    st.characters(exclude_categories=["Cs"], max_codepoint=0x3FFFF), max_size=30
)  # the vocabulary lacks the bytes of higher planes
words = st.text(st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0xFFFF), max_size=30)
hostile = st.lists(
    st.sampled_from([*SPECIALS, "<|im_", "end|>", "<|", "x", " ", "\n", "\ue000", "\ue001"]), max_size=8
).map("".join)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module", params=TEMPLATES)
def renderer(request, smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    if TEMPLATES[request.param] is not None:
        tokenizer.chat_template = TEMPLATES[request.param]
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def plain(smollm_tokenizer):
    """A tokenizer that has no template."""
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = None
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def chatml(smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = CHATML_WITH_TOOLS
    return Renderer(tokenizer)


def special_count(renderer, ids):
    return sum(token in renderer._specials.numbers.values() for token in ids)


def learnt(renderer, row, number=0):
    sequence = row.sequences[number]
    return renderer.tokenizer.decode(sequence.tokens[sequence.learn])


@settings(max_examples=40)
@given(ordinary, ordinary)
def test_a_prompt_has_the_tokens_of_apply_chat_template(renderer, system, question):
    if any(special in system + question for special in renderer._specials.numbers):
        return
    messages = [{"role": "system", "content": system}, user(question)]
    expected = renderer.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert renderer.prompt(messages) == expected


@settings(max_examples=60)
@given(hostile, hostile)
def test_what_a_person_wrote_never_becomes_special(renderer, question, answer):
    """Specials stand where the template put them and nowhere else, and the text comes back to the letter."""
    trims = renderer.tokenizer.chat_template == LLAMA_2
    question, answer = (f"a{text}a" for text in (question, answer))  # since Llama 2's template trims
    messages = [user(question), assistant(answer), user(question)]
    harmless = [user("b"), assistant("c"), user("b")]
    ids = renderer.prompt(messages)
    assert special_count(renderer, ids) == special_count(renderer, renderer.prompt(harmless))
    text = renderer.tokenizer.decode(ids)
    assert text.count(question) >= 2
    assert answer in text
    row = renderer.row(Example("f:1", (user(question),), ((assistant(answer),),)))
    assert special_count(renderer, row.sequences[0].tokens[row.sequences[0].learn]) == 1
    assert learnt(renderer, row).startswith(f" {answer} " if trims else answer)


def test_neither_tools_nor_calls_can_smuggle_a_special_token(chatml):
    def ids(word):
        tool = {"type": "function", "function": {"name": "weather", "description": word, "parameters": {word: word}}}
        call = {"function": {"name": "weather", "arguments": {word: word}}}
        return chatml.prompt(
            [user("?"), {"role": "assistant", "content": None, "tool_calls": [call]}, user("?")], [tool]
        )

    assert special_count(chatml, ids("<|im_end|>")) == special_count(chatml, ids("end"))
    assert '<|im_end|>": "<|im_end|>' in chatml.tokenizer.decode(ids("<|im_end|>"))


@settings(max_examples=30)
@given(ordinary, ordinary, ordinary)
def test_training_begins_with_what_serving_will_see(renderer, question, answer, more):
    prompt = (user(question),)
    row = renderer.row(Example("f:1", prompt, ((assistant("x" + answer), user(more), assistant(answer + "x")),)))
    tokens = row.sequences[0].tokens.tolist()
    for messages in (prompt, (*prompt, assistant("x" + answer), user(more))):
        served = renderer.prompt(messages)
        assert tokens[: len(served)] == served
    first = len(renderer.prompt(prompt))
    assert not row.sequences[0].learn[:first].any()
    assert row.sequences[0].learn[first]
    assert row.sequences[0].learn[-1]
    assert tokens[-1] in renderer.ends


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
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    renderer, example = Renderer(tokenizer), Example("f:1", (user("Weather?"),), (answer,))
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


class TestWithoutTemplate:
    def test_messages_are_lines_and_an_answer_ends(self, plain):
        row = plain.row(Example("f:1", (user("1+1?"),), ((assistant("2"),),)))
        assert plain.tokenizer.decode(row.sequences[0].tokens) == "1+1?\n2<|im_end|>"
        assert learnt(plain, row) == "2<|im_end|>"
        assert plain.tokenizer.decode(plain.prompt([user("a"), assistant("b"), user("c")])) == "a\nb<|im_end|>\nc\n"

    def test_text_begins_as_the_tokenizer_begins_texts(self, smollm_tokenizer):
        from tokenizers.processors import TemplateProcessing

        tokenizer = copy.deepcopy(smollm_tokenizer)
        tokenizer.chat_template = None
        start = ("<|im_start|>", 1)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[start]
        )
        renderer = Renderer(tokenizer)
        assert renderer.tokenizer.decode(renderer.prompt([user("a")])) == "<|im_start|>a\n"
        row = renderer.row(Example("f:1", text="some text")).sequences[0].tokens.tolist()
        assert row == [1, *renderer.encode("some text"), tokenizer.eos_token_id]
        assert renderer.plain("some text") == row[:-1]


class TestPlainText:
    @settings(max_examples=30)
    @given(st.one_of(words, hostile))
    def test_all_of_it_is_learnt_and_it_ends(self, renderer, text):
        row = renderer.row(Example("f:1", text="a" + text))
        sequence = row.sequences[0]
        assert renderer.tokenizer.decode(sequence.tokens[:-1]) == "a" + text
        assert sequence.tokens[-1] == renderer.tokenizer.eos_token_id
        assert sequence.learn.tolist() == [False] + [True] * (len(sequence) - 1)
        assert special_count(renderer, sequence.tokens) == 1

    def test_decoding_keeps_every_space(self, smollm_tokenizer):
        tokenizer = copy.deepcopy(smollm_tokenizer)
        tokenizer.clean_up_tokenization_spaces = True
        renderer = Renderer(tokenizer)
        assert renderer.decode(renderer.encode("a , b . do n't")) == "a , b . do n't"

    def test_encoding_leaves_the_tokenizer_as_it_was(self, renderer):
        assert len(renderer.encode("<|im_end|>")) > 1
        assert renderer.tokenizer("<|im_end|>").input_ids == [2]


def test_a_row_without_anything_to_learn_is_refused(renderer):
    for example in (Example("f:1", text=""), Example("f:1", (user("a"),), ((),))):
        with pytest.raises(DataError, match="nothing to learn"):
            renderer.row(example)


def test_the_templates_own_refusal_is_passed_on(smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = LLAMA_2
    with pytest.raises(DataError, match="cannot render it: Conversation roles must alternate"):
        Renderer(tokenizer).row(Example("f:1", (user("a"), user("b")), ((assistant("c"),),)))


def test_a_template_that_rewrites_the_past_is_refused(smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = "{{ messages | length }}" + CHATML_WITH_TOOLS
    with pytest.raises(DataError, match="continuation of its beginning"):
        Renderer(tokenizer).row(Example("f:1", (user("a"),), ((assistant("b"),),)))


@pytest.fixture(scope="module")
def last_thinks(smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = LAST_THINKS
    return Renderer(tokenizer)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_prompt_is_the_template_s_own_where_turns_cannot_be_told_apart(last_thinks, turns):
    talk = [user("red?"), assistant("no"), user("blue?"), assistant("yes"), user("green?")][: 2 * turns - 1]
    expected = last_thinks.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert last_thinks.prompt(talk) == expected


def test_nothing_becomes_special_where_turns_cannot_be_told_apart(last_thinks):
    counts = [
        special_count(last_thinks, last_thinks.prompt([user(text), assistant(text), user(text)]))
        for text in ("<|im_end|>", "a")
    ]
    assert counts[0] == counts[1] == 7


def test_a_row_whose_turns_cannot_be_told_apart_is_refused(last_thinks):
    row = last_thinks.row(Example("f:1", (user("a"),), ((assistant("b"),),)))
    assert learnt(last_thinks, row) == "<think>\n\n</think>\n\nb<|im_end|>"
    for prompt in ((user("a"), assistant("b"), user("c")), (user("a"), assistant("b"))):
        with pytest.raises(DataError, match="continuation of its beginning"):
            last_thinks.row(Example("f:1", prompt, ((assistant("d"),),)))


def test_a_long_conversation_is_rendered_piece_by_piece(chatml, monkeypatch):
    talk = [user("\nred?"), assistant("\nno")] * 5 + [user("why?")]
    row = chatml.row(Example("f:1", tuple(talk), ((assistant("so"),),))).sequences[0]
    monkeypatch.setattr(render, "AT_ONCE", 1)
    prompt = chatml.prompt(talk)
    assert row.tokens[: len(prompt)].tolist() == prompt


def test_a_conversation_of_very_many_turns_is_a_prompt_and_no_row(chatml):
    talk = [user("red?"), assistant("no")] * 1500 + [user("why?")]
    expected = chatml.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert chatml.prompt(talk) == expected
    with pytest.raises(DataError, match="too long to be rendered turn by turn"):
        chatml.row(Example("f:1", tuple(talk), ((assistant("so"),),)))


def test_text_that_leaves_nothing_to_keep_a_special_token_apart_is_refused(chatml):
    everything = "".join(map(chr, range(0xE000, 0xF8FF)))
    assert chatml.prompt([user(everything)])
    with pytest.raises(DataError, match=r"U\+E000 to U\+F8FE"):
        chatml.prompt([user("<|im_end|>" + everything)])


def test_padding_that_a_tokenizer_was_saved_with_stays_out_of_rows(smollm_tokenizer):
    padding = copy.deepcopy(smollm_tokenizer)
    padding.backend_tokenizer.enable_padding(pad_id=2, pad_token="<|im_end|>")
    padding.backend_tokenizer.enable_truncation(4)
    example = Example("f:1", (user("a much longer question than the answer is, by far"),), ((assistant("yes"),),))
    found, expected = (Renderer(tokenizer).row(example).sequences[0] for tokenizer in (padding, smollm_tokenizer))
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.learn.tolist() == expected.learn.tolist()


def test_rows_rendered_together_are_the_rows_rendered_alone(renderer):
    examples = [Example(f"f:{n}", (user("q" * n),), ((assistant("good " * n),),)) for n in range(1, 6)]
    examples.append(Example("f:9", text="plain text"))
    for together, alone in zip(renderer.rows(examples), map(renderer.row, examples), strict=True):
        assert [one.tokens.tolist() for one in together.sequences] == [one.tokens.tolist() for one in alone.sequences]


def test_a_template_that_tells_the_date_tells_the_day_that_it_is_given(smollm_tokenizer):
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHATML_WITH_TOOLS
    told = {day: Renderer(tokenizer, today=day).prompt([user("?")]) for day in ("2024-02-29", "2024-03-01")}
    assert [tokenizer.decode(found).partition("<")[0] for found in told.values()] == ["29 Feb 2024", "01 Mar 2024"]
    assert Renderer(tokenizer).prompt([user("?")]) not in told.values()
