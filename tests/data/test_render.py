"""What is rendered: training sees what serving will, text comes back to the letter, and what a person wrote never becomes a special token."""

import copy

import pytest
from chats import CHATML_WITH_TOOLS, LLAMA_2, assistant, learnt, renderer_with, user
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base import DataError
from tunesmith.data import render
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer

LAST_THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: what the assistant said last is rendered otherwise than what it said before."""
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<filename>"]

ordinary = st.text(
    st.characters(exclude_categories=["Cs"], max_codepoint=0x3FFFF), max_size=30
)  # the vocabulary lacks the bytes of higher planes
words = st.text(st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0xFFFF), max_size=30)
hostile = st.lists(
    st.sampled_from([*SPECIALS, "<|im_", "end|>", "<|", "x", " ", "\n", "\ue000", "\ue001"]), max_size=8
).map("".join)


@pytest.fixture(scope="module")
def plain(smollm_tokenizer):
    """A tokenizer that has no template."""
    return renderer_with(None, smollm_tokenizer)


def special_count(renderer, ids):
    return sum(token in renderer._specials.numbers.values() for token in ids)


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


def test_the_templates_own_refusal_is_passed_on(smollm_tokenizer):
    renderer = renderer_with(LLAMA_2, smollm_tokenizer)
    with pytest.raises(DataError, match="cannot render it: Conversation roles must alternate"):
        renderer.row(Example("f:1", (user("a"), user("b")), ((assistant("c"),),)))


def test_a_template_that_rewrites_the_past_is_refused(smollm_tokenizer):
    renderer = renderer_with("{{ messages | length }}" + CHATML_WITH_TOOLS, smollm_tokenizer)
    with pytest.raises(DataError, match="continuation of its beginning"):
        renderer.row(Example("f:1", (user("a"),), ((assistant("b"),),)))


@pytest.fixture(scope="module")
def last_thinks(smollm_tokenizer):
    return renderer_with(LAST_THINKS, smollm_tokenizer)


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
    template, days = "{{ strftime_now('%d %b %Y') }}" + CHATML_WITH_TOOLS, ("2024-02-29", "2024-03-01")
    told = [renderer_with(template, smollm_tokenizer, today=day).prompt([user("?")]) for day in days]
    assert [smollm_tokenizer.decode(found).partition("<")[0] for found in told] == ["29 Feb 2024", "01 Mar 2024"]
    assert renderer_with(template, smollm_tokenizer).prompt([user("?")]) not in told
