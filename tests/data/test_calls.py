"""Calls are read in the forms that templates write, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.calls import Call, read_calls

PARIS = Call("weather", {"city": "Paris"})
RATE = Call("rate", {"from": "EUR", "to": ["USD", "CHF"], "day": None})
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (HERMES, (PARIS,)),
        (f"{HERMES}\n{HERMES}", (PARIS, PARIS)),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', (PARIS,)),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}<|eom_id|>', (PARIS,)),
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "a1"}]', (PARIS,)),
        ('[{"type": "function", "id": "x", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}]', (PARIS,)),
        ('```json\n{"name": "weather", "arguments": {"city": "Paris"}}\n```', (PARIS,)),
        ('{"name": "now"}', (Call("now", {}),)),
        (f"[{json.dumps({'name': 'rate', 'arguments': RATE.arguments})}, {json.dumps({'name': 'weather', 'arguments': PARIS.arguments})}]", (RATE, PARIS)),
    ],
)  # fmt: skip
def test_every_form_gives_the_calls(text, calls):
    found = read_calls(text)
    assert (found.text, found.calls) == ("", calls)
    assert read_calls(text, {"other"}) is None
    before = read_calls(f"Let me <look>. {text}")
    assert (before.text, before.calls) == ("Let me <look>.", calls)


@pytest.mark.parametrize(
    "text",
    ["", "It rains.", '{"city": "Paris"}', f"{HERMES} and then I will know.", '<tool_call>{"name": "weather", "arguments": {', "[]", "{}", '{"name": "weather", "arguments": [1]}', '{"name": "weather", "arguments": "Paris"}', "[" * 5000, "<" * 5000],
)  # fmt: skip
def test_what_is_no_call_stays_text(text):
    assert read_calls(text) is None


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=5), st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda below: st.lists(below, max_size=3))))  # fmt: skip
def test_arguments_come_back_whole(name, arguments):
    told = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    found = read_calls(f"<tool_call>{told}</tool_call>")
    assert found.calls == (Call(name, arguments),)


def test_marks_without_an_end_are_passed_over_at_once():
    assert read_calls("<tool_call>" * 20_000) is None
