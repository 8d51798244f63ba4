"""The bundled general set is balanced, free of repetitions and written as demonstrations."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tunesmith.base import DataError
from tunesmith.stages.general import general_examples


def test_eight_topics_of_eight_rows() -> None:
    topics = Counter(example.meta["topic"] for example in general_examples())
    assert len(topics) == 8
    assert set(topics.values()) == {8}


def test_no_question_and_no_answer_stands_twice() -> None:
    examples = general_examples()
    assert len({example.prompt[0]["content"].casefold() for example in examples}) == 64
    assert len({example.gold.casefold() for example in examples}) == 64


def test_each_row_is_one_question_and_one_answer_of_fair_length() -> None:
    for number, example in enumerate(general_examples(), start=1):
        assert example.origin == f"general.jsonl:{number}"
        assert [message["role"] for message in example.prompt] == ["user"]
        assert [[message["role"] for message in answer] for answer in example.answers] == [["assistant"]]
        assert 20 <= len(example.gold.split()) <= 90, example.origin
        assert all(text == text.strip() and "\ufffd" not in text for text in example.strings())


def test_a_file_of_ones_own_takes_its_place(tmp_path: Path) -> None:
    record = {
        "topic": "mine",
        "messages": [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong."}],
    }
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (example,) = general_examples(str(path))
    assert (example.gold, example.meta["topic"]) == ("Pong.", "mine")


def test_a_file_without_a_row_that_can_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Ping?"}]}\n')
    with pytest.raises(DataError, match=r"evaluate\.general: .*own\.jsonl"):
        general_examples(str(path))


def test_a_bad_row_among_good_ones_is_named(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "Ping?"}
    good = {"messages": [asked, {"role": "assistant", "content": "Pong."}]}
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, {"messages": [asked]}, good)))
    with pytest.raises(DataError, match=r"evaluate\.general: .*own\.jsonl:2: no assistant turn: .*; mend or remove"):
        general_examples(str(path))
