"""Answers in JSON: what is read of them, and that fields and calls are counted as by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from graded import example
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tunesmith.base import DataError
from tunesmith.data.example import Example
from tunesmith.grading import HEADLINE
from tunesmith.grading.classes import normal
from tunesmith.grading.confusion import MOST_CLASSES
from tunesmith.grading.json_fields import JsonFields, macro_f1
from tunesmith.grading.json_valid import JsonValid
from tunesmith.grading.reading import canonical, read_object
from tunesmith.grading.tool_calls import ToolCalls


def test_a_field_called_as_a_figure_is_takes_no_figure_s_place() -> None:
    golds = [json.dumps({"headline": "a", "valid JSON": n, "author": "b"}) for n in range(4)]
    given = [json.dumps({"headline": "a", "valid JSON": 9, "author": "wrong"})] * 4
    figures = JsonFields().figures([example(gold) for gold in golds], given)
    assert figures[HEADLINE].point == pytest.approx(100 / 3)
    assert figures["valid JSON"].point == 100
    assert (figures["field headline"].point, figures["field valid JSON"].point) == (100, 0)


def test_letters_composed_or_not_are_the_same() -> None:
    gold, given = json.dumps({"name": "Zoe\u0308"}), json.dumps({"name": "Zo\u00eb"})
    assert JsonFields().score(given, example(gold)).hits == 1
    assert normal("Zoe\u0308", False) == normal("Zo\u00eb", False)


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ('{"a": 1}', {"a": 1}, {"a": 1}),
        ('  {"a": 1}\n', {"a": 1}, {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}, None),
        ('Use {braces}: {"a": {"b": 2}} and {"c": 3}', {"a": {"b": 2}}, None),
        ('{"a": 1', None, None),
        ("[1]", None, None),
        ("", None, None),
        ('{"a": ' * 4_000, None, None),
        ('{"a": ' + "1" * 10_000 + "}", None, None),
    ],
)
def test_reading_json(text: str, lenient: object, strict: object) -> None:
    assert read_object(text, "lenient") == lenient
    assert read_object(text, "strict") == strict


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)), st.text()
)
def test_any_object_is_found_behind_any_text_without_a_brace(value: dict[str, object], before: str) -> None:
    wrapped = before.replace("{", "") + json.dumps(value) + before.replace("{", "")
    assert read_object(wrapped) == value


def test_json_values_that_count_as_the_same() -> None:
    assert canonical(" Command  Line") == canonical("command line")
    assert canonical("CLI", ignore_case=False) != canonical("cli", ignore_case=False)
    assert canonical(1) == canonical(1.0)
    assert canonical(1) != canonical(True)
    assert canonical({"a": 1, "b": [2]}) == canonical({"b": [2.0], "a": 1})


def test_json_fields_counts_every_field_once() -> None:
    rows = [example('{"a": "x", "b": "y"}'), example('{"a": "z"}')]
    figures = JsonFields().figures(rows, ['{"a": "X", "b": "no", "c": "extra"}', '```\n{"a": "z"}\n```'])
    assert figures[HEADLINE].point == pytest.approx(200 / 3)
    assert figures["a"].point == 100.0
    assert (figures["b"].point, figures["b"].rows) == (0.0, 1)
    assert figures["valid JSON"].point == 100.0
    strict = JsonFields(reading="strict").figures(rows, ['{"a": "x", "b": "y"}', '```\n{"a": "z"}\n```'])
    assert strict[HEADLINE].point == pytest.approx(200 / 3)
    assert strict["valid JSON"].point == 50.0
    assert JsonFields().score('{"a": "x"}', rows[0]).text == 'b: missing, expected "y"'


def test_macro_f1_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    truths = [str(value) for value in generator.choice(["a", "b", "c"], 60, p=[0.8, 0.15, 0.05])]
    guesses = [str(value) for value in generator.choice(["a", "b", "c", "other"], 60)]
    rows = [example({"class": truth}) for truth in truths]
    figures = JsonFields().figures(rows, [json.dumps({"class": guess}) for guess in guesses])
    expected = f1_score(truths, guesses, labels=["a", "b", "c"], average="macro")
    assert figures["class macro F1"].point == pytest.approx(100 * expected)


def test_a_class_that_drops_out_of_a_sample_does_not_count_as_wrong() -> None:
    both, one = [3.0, 2.0, 3.0, 2.0, 3.0, 2.0, 0.0], [3.0, 0.0, 3.0, 0.0, 3.0, 0.0, 0.0]
    assert macro_f1(np.array([both, one])).tolist() == [100.0, 100.0]


def test_free_text_fields_have_no_macro_f1() -> None:
    rows = [example({"title": f"number {index}"}) for index in range(5)]
    assert "title macro F1" not in JsonFields().figures(rows, ["{}"] * 5)


def test_fields_of_more_classes_than_memory_has_room_for_have_no_macro_f1() -> None:
    for classes, told in ((MOST_CLASSES, True), (MOST_CLASSES + 1, False)):
        rows = [example(json.dumps({"city": f"c{index % classes}"})) for index in range(2 * classes)]
        figures = JsonFields().figures(rows, [row.gold for row in rows])
        assert ("city macro F1" in figures) == told
        assert figures["city"].point == 100


def test_json_fields_refuses_a_gold_that_is_no_object() -> None:
    with pytest.raises(DataError, match=r"t:1: 'json_fields' needs a JSON object"):
        JsonFields().figures([example("yes")], ["{}"])
    with pytest.raises(DataError, match="nothing to grade"):
        JsonFields().figures([example("{}")], ["{}"])


def test_json_valid_is_strict_unless_told() -> None:
    fenced = '```json\n{"a": 1}\n```'
    assert JsonValid().score(fenced, example("{}")).hits == 0
    assert JsonValid(reading="lenient").score(fenced, example("{}")).hits == 1


def calling(*calls: tuple[str, dict[str, object]]) -> Example:
    made = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    tools = tuple({"type": "function", "function": {"name": name}} for name in ("weather", "rate"))
    return Example(
        "t:1",
        ({"role": "user", "content": "?"},),
        (({"role": "assistant", "content": "", "tool_calls": made},),),
        tools=tools,
    )


def said(*calls: tuple[str, dict[str, object]]) -> str:
    return "\n".join(
        f"<tool_call>{json.dumps({'name': name, 'arguments': given})}</tool_call>" for name, given in calls
    )


def test_calls_are_right_by_tool_and_arguments() -> None:
    paris, rome, rate = (
        ("weather", {"city": "Paris", "days": 1}),
        ("weather", {"days": 1.0, "city": "Rome"}),
        ("rate", {}),
    )
    grader, row = ToolCalls(), calling(paris, rome)

    def of(answer: str, example: Example = row) -> tuple[float, float, float]:
        found = grader.score(answer, example)
        return found.hits, found.total, found.parts["tool"][0]

    assert of(said(rome, paris)) == (2, 2, 2)
    assert of(said(paris)) == (1, 2, 1)
    assert of(said(paris, paris)) == (1, 2, 2)
    assert of(said(paris, rome, rate)) == (2, 3, 2)
    assert of(said(("weather", {"city": "paris", "days": 1}), rate)) == (0, 2, 1)
    assert of(said(paris, ("unknown", {}))) == of("Paris") == (0, 2, 0)
    assert ToolCalls(ignore_case=True).score(said(("weather", {"city": "PARIS", "days": 1})), row).hits == 1
    talk = example("It rains.")
    assert of("Some text", talk) == of(json.dumps({"name": "Paris", "population": 3}), talk) == (1, 1, 1)
    assert of(said(paris), replace(row, tools=())) == (1, 2, 1)
    assert of(said(paris), replace(talk, tools=row.tools)) == of("", talk) == (0, 1, 0)
