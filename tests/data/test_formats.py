"""Every way to write an example is recognised, becomes the same Example, or is refused with its field and reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import ConfigError, DataError
from tunesmith.data.example import Example
from tunesmith.data.formats import FORMATS, detect, names
from tunesmith.data.sources import Record

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "2"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def record(value: dict[str, Any], line: int = 1) -> Record:
    return Record(f"f.jsonl:{line}", value)


def read(value: dict[str, Any], name: str = "auto") -> Example:
    return detect([record(value)], name).example(record(value))


SAME: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, BOT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "prompt_completion": {"question": "Hi", "answer": "Hello"},
    "kto": {"prompt": "Hi", "completion": "Hello", "label": True},
}


@pytest.mark.parametrize("name", SAME)
def test_formats_are_recognised_and_say_the_same(name: str) -> None:
    value = {**SAME[name], "topic": "greeting"}
    assert detect([record(value)]).name == name
    example = read(value)
    assert (example.prompt, example.answers) == ((USER,), ((BOT,),))
    assert example.meta == {"topic": "greeting"}
    assert example.origin == "f.jsonl:1"
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


@pytest.mark.parametrize("pair", [form.fields for form in FORMATS if form.name == "prompt_completion"])
def test_every_pair_of_names_works(pair: tuple[str, str]) -> None:
    assert read({pair[0]: "Hi", pair[1]: "Hello"}).answers == ((BOT,),)


PREFERENCES = [
    {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    {"prompt": [USER], "chosen": [BOT], "rejected": [{"role": "assistant", "content": "No"}]},
    {"chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "No"}]},
    {"prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, {"role": "assistant", "content": "No"}]},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
]


@pytest.mark.parametrize("value", PREFERENCES)
def test_preferences_with_and_without_prompt(value: dict[str, Any]) -> None:
    assert detect([record(value)]).name == "preference"
    example = read(value)
    assert example.prompt == (USER,)
    assert [answer[0]["content"] for answer in example.answers] == ["Hello", "No"]


NO = {"role": "assistant", "content": "No"}
BESIDE: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "a conversation": ({"system": "Be kind", "messages": [USER, BOT]}, (SYSTEM, USER)),
    "a prompt of messages": ({"system": "Be kind", "prompt": [USER], "answer": "Hello"}, (SYSTEM, USER)),
    "a preference": ({"system": "Be kind", "chosen": [USER, BOT], "rejected": [USER, NO]}, (SYSTEM, USER)),
    "a preference that repeats the prompt": ({"system": "Be kind", "prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, NO]}, (SYSTEM, USER)),
    "a preference whose prompt has it": ({"prompt": [SYSTEM, USER], "chosen": [USER, BOT], "rejected": [USER, NO]}, (SYSTEM, USER)),
    "a transcript": ({"system": "Be kind", "chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, (SYSTEM, USER)),
    "an instruction's input": ({"instruction": "Hi", "input": "you", "response": "Hello"}, ({"role": "user", "content": "Hi\n\nyou"},)),
    "Dolly's context": ({"instruction": "Hi", "context": "you", "response": "Hello", "category": "qa"}, ({"role": "user", "content": "Hi\n\nyou"},)),
    "a question's context": ({"question": "Hi", "context": "you", "answer": "Hello"}, ({"role": "user", "content": "Hi\n\nyou"},)),
    "a preference's context": ({"prompt": "Hi", "context": "you", "chosen": "Hello", "rejected": "No"}, ({"role": "user", "content": "Hi\n\nyou"},)),
    "turns before an instruction": ({"instruction": "Hi", "history": [["a", "b"]], "system": "Be kind", "response": "Hello"}, (SYSTEM, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, USER)),
    "a judged answer": ({"instruction": "Hi", "input": "you", "output": "Hello", "label": True}, ({"role": "user", "content": "Hi\n\nyou"},)),
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_nothing_of_what_is_asked_is_dropped_or_said_twice(name: str) -> None:
    value, prompt = BESIDE[name]
    assert read(value).prompt == prompt


def test_a_file_where_few_rows_have_turns_before_keeps_them() -> None:
    rows = [{"instruction": "Hi", "output": "Hello"}] * 10
    found = detect([record(row) for row in rows]).example(record({**rows[0], "history": [["a", "b"]], "tools": [TOOL]}))
    assert [turn["content"] for turn in found.prompt] == ["a", "b", "Hi"]
    assert found.tools == (TOOL,)
    alpaca = {"instruction": "Hi", "input": "you", "output": "Hello", "tools": [TOOL]}
    assert read(alpaca).tools == (TOOL,)


def test_what_stands_beside_a_list_of_messages_is_not_dropped() -> None:
    with pytest.raises(DataError, match="'context' stands beside 'prompt'"):
        read({"prompt": [USER], "context": "you", "completion": "Hello"})
    with pytest.raises(DataError, match="'history' stands beside 'instruction'"):
        read({"instruction": [USER], "history": [["a", "b"]], "output": "Hello"})
    with pytest.raises(DataError, match="'context' stands beside whole conversations"):
        read({"context": "you", "chosen": [USER, BOT], "rejected": [USER, NO]})
    with pytest.raises(DataError, match="'context' is not text: it is an object; write it as text"):
        read({"question": "Hi", "context": {"a": ["b"]}, "answer": "Hello"})


def test_turns_of_sharegpt_may_be_left_out_of_what_is_learnt() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "weight": 0}]
    assert read({"conversations": [*turns, *turns]}).answers[0][0]["weight"] == 0


def test_chat_details() -> None:
    turns = [SYSTEM, USER, CALL, RESULT, BOT, USER, BOT]
    example = read({"messages": turns, "tools": json.dumps([TOOL["function"]])})
    assert example.prompt == (SYSTEM, USER)
    assert len(example.answers[0]) == 5
    assert example.tools == (TOOL,)
    assert example.answers[0][0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert example.answers[0][0]["content"] == ""
    texts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert read({"messages": [{"role": "user", "content": texts, "name": None}, BOT]}).prompt == (USER,)
    assert read({"messages": [{"role": "developer", "content": "Be kind"}, USER, BOT]}).prompt[0] == SYSTEM
    assert (
        read({"instruction": "Add", "input": "1 2", "output": "3", "history": [["a", "b"]]}).prompt[-1]["content"]
        == "Add\n\n1 2"
    )
    assert read({"text": "once upon"}).text == "once upon"
    assert read({"prompt": "a", "completion": "b", "label": "False"}).columns == {"label": 0.0}


def calling(arguments: str) -> dict[str, Any]:
    """A row whose call has arguments in OpenAI's form: JSON in a text."""
    call = {"function": {"name": "f", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}


BAD: dict[str, dict[str, Any]] = {
    "'messages' is missing; a row of messages needs messages": {"prompt": "x"},
    "'messages' is null": {"messages": None},
    "'messages' is empty": {"messages": []},
    "'messages' is not a list of messages: it is text": {"messages": "Hi"},
    "a message is not an object: messages.0 is text": {"messages": ["Hi"]},
    "a message has no role: messages.0": {"messages": [{"content": "x"}, BOT]},
    "unknown role: messages.0 has 'robot'": {"messages": [{"role": "robot", "content": "x"}, BOT]},
    "unknown role: messages.0 has 3": {"messages": [{"role": 3, "content": "x"}, BOT]},
    "a message has no content: messages.0": {"messages": [{"role": "user"}, BOT]},
    "content is not text: messages.0 holds a number": {"messages": [{"role": "user", "content": 3}, BOT]},
    "content is not text: messages.0.content holds a part of type 'image_url'": {
        "messages": [{"role": "user", "content": [{"type": "image_url"}]}, BOT]
    },
    "an empty message: messages.0": {"messages": [{"role": "user", "content": " "}, BOT]},
    "empty answer: messages.1": {"messages": [USER, {"role": "assistant", "content": "\n"}]},
    "no assistant turn": {"messages": [SYSTEM, USER]},
    "the last turn is not the assistant's: messages.2 is user": {"messages": [USER, BOT, USER]},
    "no prompt": {"messages": [BOT]},
    "two system messages": {"system": "Be kind", "messages": [SYSTEM, USER, BOT]},
    "a message's weight is neither 0 nor 1: messages.1": {"messages": [USER, {**BOT, "weight": 0.5}]},
    "a tool result without its call: messages.1": {"messages": [USER, RESULT, BOT]},
    "a tool result without its call: messages.2 answers '9'": {
        "messages": [USER, CALL, {**RESULT, "tool_call_id": "9"}, BOT]
    },
    "a tool result without its call: messages.3": {"messages": [USER, CALL, RESULT, RESULT, BOT]},
    "a tool call has no function name": {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
    "JSON inside text cannot be read: messages.1.tool_calls.0 arguments": calling("{"),
    "holds a lone surrogate: field 'messages.1.tool_calls.0 arguments.x', U+D83D": calling(r'{"x": "\ud83d"}'),
    "holds a NUL character: field 'messages.1.tool_calls.0 arguments.x'": calling(r'{"x": "\u0000"}'),
    "nested too deep: field 'messages'": calling('{"x": ' + "[" * 200 + "]" * 200 + "}"),
    "holds a lone surrogate: field 'tools.0.description'": {
        "messages": [USER, BOT],
        "tools": r'[{"name": "f", "description": "\ud83d"}]',
    },
    "calls a tool that is not offered: messages.1 calls 'f'": {
        "messages": [USER, CALL],
        "tools": [{"type": "function", "function": {"name": "g"}}],
    },
    "a tool has no name: tools.0": {"messages": [USER, BOT], "tools": [{}]},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_conversation_says_what_and_where(reason: str) -> None:
    form = detect([record({"messages": [USER, BOT]})])
    with pytest.raises(DataError) as caught:
        form.example(record(BAD[reason]))
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("value", "form", "reason"),
    [
        ({"prompt": "x", "answer": ""}, "prompt_completion", "empty answer: 'answer'"),
        ({"prompt": "", "answer": "x"}, "prompt_completion", "'prompt' is empty"),
        ({"prompt": "x", "answer": 4}, "prompt_completion", "'answer' is not text: it is a number"),
        ({"prompt": "x", "chosen": "a", "rejected": ["b"]}, "preference", "mixed types"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "preference", "nothing to prefer"),
        ({"chosen": [USER, BOT], "rejected": [SYSTEM, BOT]}, "preference", "the prompts differ"),
        ({"prompt": "x", "completion": "y", "label": "maybe"}, "kto", "'label' is not true or false"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "me", "value": "y"}]},
            "sharegpt",
            "unknown role",
        ),
        ({"conversations": [{"from": "human"}]}, "sharegpt", "a turn lacks 'value'"),
        ({"text": ["x"]}, "text", "'text' is not text: it is a list"),
    ],
)
def test_bad_fields_of_other_formats(value: dict[str, Any], form: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read(value, form)
    assert str(caught.value).startswith(reason)


def test_the_majority_of_the_first_rows_decides() -> None:
    odd, usual = {"text": "x"}, {"prompt": "Hi", "answer": "Hello"}
    form = detect([record(odd), record(usual), record(usual)])
    assert form.fields == ("prompt", "answer")
    with pytest.raises(DataError, match="'prompt' is missing; a row of prompt_completion needs prompt and answer"):
        form.example(record(odd))


def test_unknown_rows_and_names_list_what_exists() -> None:
    with pytest.raises(
        DataError, match=r"f\.jsonl:1: fits no known format: its fields are 'q', 'a'; each row needs messages"
    ):
        detect([record({"q": "x", "a": "y"})])
    with pytest.raises(DataError, match="is not written as kto"):
        detect([record({"prompt": "x", "answer": "y"})], "kto")
    with pytest.raises(ConfigError, match="there are auto, preference, messages"):
        detect([], "chatml")


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    | st.sampled_from(["user", "assistant", "tool", "f", "human"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text"]
            ),
            below,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = sorted({name for form in FORMATS for name in (*form.fields, *form.optional)})


@given(st.dictionaries(st.sampled_from(FIELDS), ANY, min_size=1, max_size=5), st.sampled_from(names()))
def test_any_json_is_an_example_or_a_reason(value: dict[str, Any], name: str) -> None:
    reasons: list[str] = []
    for form in (form for form in FORMATS if form.name == name):
        try:
            example = form.example(record(value))
        except DataError as error:
            reasons.append(str(error))
        else:
            assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example
            assert example.text or all(example.answers)
    assert all(reason and "\n" not in reason for reason in reasons)
