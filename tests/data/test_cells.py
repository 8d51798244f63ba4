"""Cells of tables that hold JSON: what becomes a value or messages, and what stays text."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.conversation import ROLES, SPEAKERS
from tunesmith.data.sources import open_source
from tunesmith.data.sources.csv_file import _SPEAKERS


def test_table_cells_become_json_values(tmp_path: Path) -> None:
    import datetime
    import decimal
    import uuid

    row = {
        "a": datetime.date(2026, 1, 2),
        "b": decimal.Decimal("1.5"),
        "c": b"123",
        "d": float("nan"),
        "e": None,
        "f": [1, 2],
    }
    table = pa.Table.from_pylist([row]).append_column("g", pa.array([uuid.UUID(int=5).bytes], pa.uuid()))
    pq.write_table(table, tmp_path / "t.parquet")
    (record,) = open_source(str(tmp_path / "t.parquet"))
    g = "00000000-0000-0000-0000-000000000005"
    assert record.value == {"a": "2026-01-02", "b": 1.5, "c": {"bytes": 3}, "d": None, "f": [1, 2], "g": g}
    json.dumps(record.value)


def test_cells_may_be_messages(tmp_path: Path) -> None:
    said = [{"role": "assistant", "content": "Hello"}]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "chosen", "rejected", "completion"])
        table.writerow(["Hi", json.dumps(said), json.dumps([{**said[0], "content": "No"}]), '[{"name": "x"}]'])
        table.writerow(["Hi", repr(said), "No", "[{not json"])
    first, second = open_source(str(tmp_path / "a.csv"))
    assert first.value["chosen"] == said
    assert first.value["completion"] == '[{"name": "x"}]'  # an answer that is JSON
    assert "the cell 'chosen' is not valid JSON" in second.defect


@pytest.mark.parametrize(
    "cell",
    [
        "[[1, 2], [3, 4]]",
        '[{"value": 5, "unit": "kg"}]',
        '[{"from": "Berlin", "to": "Paris"}]',
        "[[Paris]] is a town",
        "[[see]]",
    ],
)
def test_cells_that_only_begin_like_messages_are_text(tmp_path: Path, cell: str) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion"], [cell, cell]])
    (found,) = open_source(str(tmp_path / "a.csv"))
    assert found.value == {"prompt": cell, "completion": cell}


@pytest.mark.parametrize("turn", [{"content": "x" * 2000, "role": "assistant"}, {"from": "chatgpt", "value": "Hello"}])
def test_cells_of_messages_may_begin_with_what_is_said(tmp_path: Path, turn: dict[str, str]) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen"], ["Hi", json.dumps([turn])]])
    (found,) = open_source(str(tmp_path / "a.csv"))
    assert found.value["chosen"] == [turn]


def test_all_who_speak_are_known() -> None:
    assert {*ROLES, *SPEAKERS, "function_call", "tool_call"} == set(_SPEAKERS.split("|"))
