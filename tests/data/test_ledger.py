"""No row can be lost or counted twice."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import ProofError
from tunesmith.data.ledger import STATES, Ledger, State


@given(st.lists(st.sampled_from(STATES), max_size=30))
def test_the_sum_holds_and_every_row_is_written(tmp_path_factory: pytest.TempPathFactory, states: list[State]) -> None:
    ledger = Ledger()
    numbers = [ledger.enter(f"f:{line}", "train") for line in range(len(states))]
    for number, state in reversed(list(zip(numbers, states, strict=True))):
        ledger.settle(number, state, None if state == "used" else f"{state} for a reason: {number}", supervised=number)
    counts = ledger.counts()
    assert counts["rows"] == sum(counts.get(state, 0) for state in STATES) == len(states)
    assert sum(counts["reasons"].values()) == len(states) - states.count("used")
    assert len(counts["reasons"]) <= 3
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger.write(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["origin"], line["state"], line["supervised"]) for line in lines] == [
        (f"f:{n}", s, n) for n, s in enumerate(states)
    ]


def test_a_lost_row_and_a_row_settled_twice_are_refused(tmp_path: Path) -> None:
    ledger = Ledger()
    row, _ = ledger.enter("f:1", "train"), ledger.enter("f:2", "train")
    ledger.settle(row, "used")
    with pytest.raises(ProofError, match="f:1: was settled twice"):
        ledger.settle(row, "quarantined", "x")
    with pytest.raises(ProofError, match="f:2: came in and is neither used"):
        ledger.write(tmp_path / "ledger.jsonl")


def test_counts_of_one_split() -> None:
    ledger = Ledger()
    ledger.settle(ledger.enter("f:1", "train"), "used", split="test")
    ledger.settle(ledger.enter("f:2", "train"), "quarantined", "empty answer: 'answer'")
    assert ledger.counts("test") == {"rows": 1, "used": 1, "truncated": 0, "quarantined": 0, "reasons": {}}
    assert ledger.counts("train")["reasons"] == {"empty answer": 1}
