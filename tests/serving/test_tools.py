"""Tools and calls reach the chat template as they did in training, field by field and in the same order."""

import json
from dataclasses import replace
from types import SimpleNamespace

import openai
import pytest
from pydantic import ValidationError

from tunesmith.data.conversation import as_messages, as_tools
from tunesmith.models.generate import Piece
from tunesmith.serving.reply import Choice, Reply
from tunesmith.serving.schema import ChatAsked

TOOL = {"function": {"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "description": "Tells it.", "name": "weather"}, "type": "function"}  # fmt: skip
TALK = [
    {"role": "user", "content": "Rain in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
    {"role": "tool", "content": "no", "tool_call_id": "1"},
]  # fmt: skip


def asked(**fields) -> ChatAsked:
    return ChatAsked.model_validate_json(json.dumps({"model": "tuned", "messages": TALK, "tools": [TOOL], **fields}))


def test_a_call_s_arguments_are_an_object_as_in_training():
    served = [turn.message for turn in asked().messages]
    trained = as_messages(TALK, "messages", as_tools([TOOL]), prompt=True)
    assert json.dumps(served[1]["tool_calls"], sort_keys=True) == json.dumps(trained[1]["tool_calls"], sort_keys=True)
    assert served[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert served[1]["content"] == trained[1]["content"] == ""


def test_tools_are_spelled_as_in_training():
    assert json.dumps(asked().rendered_tools) == json.dumps(list(as_tools([TOOL])))
    assert asked(tool_choice="none").rendered_tools == []
    assert asked(tools=None).rendered_tools == []


@pytest.mark.parametrize("arguments", ["{", "[1]", "3", "[" * 3000])
def test_arguments_that_are_no_object_are_refused(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    with pytest.raises(ValidationError, match="arguments is no JSON object"):
        asked(messages=[TALK[0], {"role": "assistant", "tool_calls": [call]}])


def test_an_answer_may_come_back_as_clients_hold_it():
    held = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    found = asked(messages=[{"role": "user", "content": "Hello"}, held, {"role": "user", "content": "Bye"}])
    assert found.messages[1].message == {"role": "assistant", "content": "Hi"}


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


def replied(text: str, finish: str = "stop", tools=("weather",), size: int = 3, one_call: bool = False):
    """A reply to one prompt, whole and in pieces of some characters: the message, and what a client puts together of the chunks."""
    parts = [text[start : start + size] for start in range(0, len(text), size)] or [""]
    pieces = [Piece(0, 5, part, 0.0, (), None) for part in parts]
    pieces[-1] = replace(pieces[-1], finish=finish)
    whole, stream = (
        Reply("chat", "tuned", SimpleNamespace(ends=()), 3, [Choice()], False, False, frozenset(tools), one_call)
        for _ in range(2)
    )
    whole.choices[0].pieces.extend(pieces)
    chunks = [chunk["choices"][0] for piece in pieces for chunk in stream.chunk(piece)]
    content = "".join(chunk["delta"].get("content", "") for chunk in chunks)
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
    return whole.whole["choices"][0], (content, calls, chunks[-1]["finish_reason"]), chunks


@pytest.mark.parametrize("before", ["", "Let me see. ", "<think>so</think> ", "Let me <look> at `it`.\n"])
def test_calls_come_back_as_calls(before):
    whole, (content, calls, finish), chunks = replied(before + CALL)
    message = whole["message"]
    assert (message["content"], whole["finish_reason"], finish) == (before.strip() or None, "tool_calls", "tool_calls")
    (call,), (streamed,) = message["tool_calls"], calls
    assert call["function"] == streamed["function"] == {"name": "weather", "arguments": '{"city": "Zürich"}'}
    assert (streamed["index"], streamed["type"], streamed["id"][:5]) == (0, "function", "call_")
    assert content.strip() == before.strip()
    assert (
        not before.startswith("Let") or chunks[0]["delta"]["content"] == "Let"
    )  # what is sure to be text is not held back
    openai.types.chat.ChatCompletionMessage.model_validate(message)


@pytest.mark.parametrize(
    ("text", "finish", "tools"),
    [
        ("It rains <here> and [there].", "stop", ("weather",)),
        (CALL, "length", ("weather",)),
        (CALL, "stop", ()),
        (CALL, "stop", ("other",)),
        (f"{CALL} So it rains.", "stop", ("weather",)),
        ("", "stop", ("weather",)),
    ],
    ids=["text", "cut off", "none offered", "another offered", "goes on", "nothing"],
)
def test_what_is_no_call_of_a_tool_that_was_offered_stays_text(text, finish, tools):
    whole, streamed, _ = replied(text, finish, tools)
    assert (whole["message"]["content"], whole["finish_reason"]) == (text, finish)
    assert "tool_calls" not in whole["message"]
    assert streamed == (text, [], finish)


@pytest.mark.parametrize(("one_call", "count"), [(False, 2), (True, 1)])
def test_of_several_calls_the_first_is_told_where_only_one_is_wanted(one_call, count):
    whole, (_, streamed, finish), _ = replied(f"{CALL}\n{CALL.replace('Zürich', 'Bern')}", one_call=one_call)
    for calls in (whole["message"]["tool_calls"], streamed):
        assert len(calls) == count
        assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Zürich"}
    assert finish == whole["finish_reason"] == "tool_calls"


def test_a_stream_goes_on_behind_marks_that_lead_to_no_call():
    text = "Use `x` where a < b, as in {k: v}; then the rest of a long answer follows."
    _, (content, calls, finish), chunks = replied(text)
    assert (content, calls, finish) == (text, [], "stop")
    longest = max(len(chunk["delta"].get("content", "")) for chunk in chunks)
    assert longest <= 12  # what may be a word of JSON, and what comes with it


def test_half_a_character_in_arguments_can_be_sent():
    whole, (_, (streamed,), _), _ = replied('{"name": "weather", "arguments": {"x": "\\ud83d"}}')
    (call,) = whole["message"]["tool_calls"]
    assert call["function"] == streamed["function"]
    assert call["function"]["arguments"].encode()
    assert json.loads(call["function"]["arguments"]) == {"x": "\ud83d"}


def test_what_only_has_a_name_is_no_call():
    for text in ('{"name": "weather", "city": "Paris"}', '[{"name": "weather", "degrees": 3}]'):
        whole, streamed, _ = replied(text)
        assert (whole["message"]["content"], streamed[0], whole["finish_reason"]) == (text, text, "stop")
