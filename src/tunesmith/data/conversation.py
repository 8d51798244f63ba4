"""Conversations in OpenAI's form: what is accepted, what is refused and why."""

import re
from collections.abc import Sequence
from typing import Any

from tunesmith.base import DataError
from tunesmith.base.files import canonical

from .example import Message
from .sources.json_text import RefusedError, parse
from .sources.record import kind_of, string_defect

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Roles that are accepted, and the one that templates know."""
SPEAKERS = {
    **{name: "system" for name in ("system",)},
    **{name: "user" for name in ("human", "user", "prompter")},
    **{name: "assistant" for name in ("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard")},
    **{name: "tool" for name in ("tool", "observation", "function_response", "tool_response")},
}
"""ShareGPT's names for roles."""
NOTHING = re.compile(r"[\s\u00ad\u115f\u1160\u200b-\u200f\u2060-\u2064\u2800\u3164\ufeff\uffa0]*")
"""White space, and letters that are drawn as nothing: no question and no answer."""

Tools = tuple[dict[str, Any], ...]


def said(role: str, content: str) -> Message:
    """A message."""
    return {"role": role, "content": content}


def says_nothing(text: str) -> bool:
    """Whether all of a text is blank, or is drawn as nothing."""
    return NOTHING.fullmatch(text) is not None


def as_messages(value: Any, field: str, tools: Tools, *, prompt: bool = False) -> list[Message]:
    """Check a conversation and bring it into one form: roles that templates know, arguments of calls as objects.

    Args:
        value: the field's value.
        field: its name, for the reasons.
        tools: functions that may be called; unknown if empty.
        prompt: whether it is only a prompt, which need not end with the assistant.

    Raises:
        DataError: the reason, `what: where`.
    """
    if not isinstance(value, list):
        raise DataError(f"{field!r} is not a list of messages: it is {kind_of(value)}")
    if not value:
        raise DataError(f"{field!r} is empty: it holds no message")
    messages = [_message(turn, f"{field}.{number}") for number, turn in enumerate(value)]
    if not prompt:
        _check_end(messages, field)
    _check_calls(messages, field, tools)
    return messages


def parts(messages: list[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What stands before the assistant's first turn, and the rest."""
    first = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return tuple(messages[:first]), tuple(messages[first:])


def as_tools(value: Any) -> Tools:
    """The functions that a row offers, each `{"type": "function", "function": {...}}`.

    Raises:
        DataError: the reason, `what: where`.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = _parsed(value, "tools")
    if not isinstance(value, list):
        raise DataError(f"'tools' is not a list: it is {kind_of(value)}")
    found = [
        tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool}
        for tool in value
    ]
    for number, tool in enumerate(found):
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise DataError(f"a tool has no name: tools.{number}; write name, description and parameters")
    return tuple({**tool, "function": _without_null(tool["function"])} for tool in found)


def from_sharegpt(value: Any, field: str, system: Any = None) -> list[Any]:
    """ShareGPT's turns (`from`, `value`) as messages, not yet checked."""
    if not isinstance(value, list):
        raise DataError(f"{field!r} is not a list of turns: it is {kind_of(value)}")
    turns = [_turn(turn, f"{field}.{number}") for number, turn in enumerate(value)]
    return [said("system", system), *turns] if system else turns


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"a turn is not an object: {place} is {kind_of(turn)}")
    for name in ("from", "value"):
        if turn.get(name) is None:
            raise DataError(f"a turn lacks {name!r}: {place}")
    weight = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    if turn["from"] in ("function_call", "tool_call"):
        call = _parsed(turn["value"], place) if isinstance(turn["value"], str) else turn["value"]
        calls = call if isinstance(call, list) else [call]
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": one} for one in calls],
            **weight,
        }
    if not isinstance(turn["from"], str) or turn["from"] not in SPEAKERS:
        raise DataError(
            f"unknown role: {place} is from {turn['from']!r}; known are {', '.join(SPEAKERS)}, function_call"
        )
    return {**said(SPEAKERS[turn["from"]], turn["value"]), **weight}


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"a message is not an object: {place} is {kind_of(turn)}")
    if turn.get("role") is None:
        raise DataError(f"a message has no role: {place}")
    if not isinstance(turn["role"], str) or turn["role"] not in ROLES:
        raise DataError(f"unknown role: {place} has {turn['role']!r}; known are {', '.join(ROLES)}")
    if turn.get("weight", 1) not in (0, 1, None):
        raise DataError(f"a message's weight is neither 0 nor 1: {place}; 0 is not learnt")
    message = {name: part for name, part in turn.items() if part is not None}
    message["role"] = ROLES[turn["role"]]
    calls = message.pop("tool_calls", None)
    if calls:
        if message["role"] != "assistant":
            raise DataError(f"a tool call that is not the assistant's: {place} is {message['role']}")
        message["tool_calls"] = _calls(calls, place)
    message["content"] = _content(message, place, optional=bool(calls))
    return message


def _content(message: Message, place: str, optional: bool) -> str:
    content = message.get("content")
    if content is None and optional:
        return ""
    if content is None:
        raise DataError(f"a message has no content: {place} ({message['role']})")
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content") for part in content)
    if not isinstance(content, str):
        raise DataError(f"content is not text: {place} holds {kind_of(content)}")
    if says_nothing(content) and not optional:
        if message["role"] == "assistant":
            raise DataError(f"empty answer: {place} says nothing")
        if message["role"] == "user":
            raise DataError(f"an empty message: {place} (user) says nothing")
    return content


def _part(part: Any, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else kind_of(part)
    raise DataError(f"content is not text: {place} holds a part of type {kind!r}; only text is learnt")


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise DataError(f"'tool_calls' is not a list: {place} holds {kind_of(calls)}")
    found = []
    for number, call in enumerate(calls):
        where = f"{place}.tool_calls.{number}"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"a tool call has no function name: {where}")
        arguments = function.get("arguments", {})
        arguments = _parsed(arguments, f"{where} arguments") if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            raise DataError(f"a tool call's arguments are not an object: {where} holds {kind_of(arguments)}")
        known = {name: part for name, part in call.items() if part is not None}
        found.append({"type": "function", **known, "function": {**function, "arguments": arguments}})
    return found


def _check_end(messages: Sequence[Message], field: str) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"no assistant turn: nothing in {field!r} can be learnt")
    if messages[-1]["role"] != "assistant":
        raise DataError(f"the last turn is not the assistant's: {field}.{len(messages) - 1} is {messages[-1]['role']}")


def _check_calls(messages: Sequence[Message], field: str, tools: Tools) -> None:
    """Every tool result answers a call made just before it, every call has its result before others speak, and is of a tool that is offered."""
    offered = {tool["function"]["name"] for tool in tools}
    open_ids: list[Any] = []
    asked = 0
    for number, message in enumerate(messages):
        if message["role"] != "tool":
            if open_ids:
                raise DataError(f"a tool call without its result: {field}.{asked} is followed by {message['role']}")
            asked = number
            open_ids = [call.get("id") for call in message.get("tool_calls", ())]
            for call in message.get("tool_calls", ()):
                name = call["function"]["name"]
                if offered and name not in offered:
                    there = ", ".join(sorted(offered))
                    raise DataError(
                        f"calls a tool that is not offered: {field}.{number} calls {name!r}; tools has {there}"
                    )
            continue
        wanted = message.get("tool_call_id")
        if not open_ids or (wanted is not None and any(open_ids) and wanted not in open_ids):
            raise DataError(
                f"a tool result without its call: {field}.{number}{f' answers {wanted!r}' if wanted else ''}"
            )
        open_ids.remove(wanted if wanted in open_ids else open_ids[0])


def _parsed(text: str, place: str) -> Any:
    try:
        value = parse(text)
    except RefusedError as reason:
        raise DataError(f"JSON inside text cannot be read: {place}: {reason}") from None
    if defect := string_defect(value, place):  # what stood escaped in the text was no letter of the row yet
        raise DataError(defect)
    return value


def _without_null(value: Any) -> Any:
    """A value without fields that are null, which tables fill in where another row has the field."""
    if isinstance(value, dict):
        return {name: _without_null(part) for name, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list) else value


def spelled(message: Message) -> str:
    """A message as one text that two messages share only if they say and call the same."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    said_and_called = (message["content"], *([canonical(calls)] if calls else ()))
    return "\n".join((message["role"], *said_and_called))


def spelled_whole(message: Message) -> str:
    """The same with all that it holds besides, such as the reasoning before what is said."""
    besides = {
        name: part for name, part in message.items() if name not in ("role", "content", "tool_calls", "tool_call_id")
    }
    return "\n".join((spelled(message), *([canonical(besides)] if besides else ())))
