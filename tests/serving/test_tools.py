"""Tools and calls reach the chat template as they did in training, field by field and in the same order."""

import json

import pytest
from pydantic import ValidationError

from tunesmith.data.conversation import as_messages, as_tools
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
