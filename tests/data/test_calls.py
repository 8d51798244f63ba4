"""Calls are read in the forms that templates write, and nothing else is taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.calls import Call, read_calls, sure

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


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("It rains.", 0),
        ("Let me <look> at `it` [1] {so to speak} now", 0),
        ("def f(x):\n    return {k: v[0] for k, v in x if k < 3}\n", 0),
        ('{"city": "Paris"} is', 0),
        (f"{HERMES} and then I know", 0),
        ('{"name": "other", "arguments": {}} so', 0),
        ("<tool_call>" * 20_000 + "and nothing else", 0),
        ("Let me see. <", 1),
        ("Let me see. <tool_c", 7),
        ("Let me see. ```js", 5),
        ("Let me see. [TOOL_", 6),
        ('Let me <look>. {"name": "wea', 13),
        ('Let me see. {"name": tru', 12),
        ('Let me see. {"name": "\\u00', 14),
        (f"So: {HERMES}\n", len(HERMES) + 1),
    ],
)
def test_of_an_answer_under_way_only_what_may_be_a_call_is_held_back(text, left):
    assert sure(text, {"weather"}) == len(text) - left


PARTS = ["a", " ", "\n", "<", "`", "[", "{", "]", "}", "```json", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|tool|>", ",", '"', "1", '{"a": "\\ud83d\\ude00", "b": [-1e5, true]}', HERMES, '{"name": "now"}']  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join), st.sampled_from(PARTS[-2:]))
def test_nothing_of_a_call_is_told_as_text(before, call):
    text, told = before + call, 0
    found = read_calls(text)
    for end in range(len(text) + 1):
        told = sure(text[:end], None, told)
        assert found is None or found.text.startswith(text[:told].strip())
