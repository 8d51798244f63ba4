"""Answers of a killed evaluation are found again, and believed only as they were written."""

import json

from tunesmith.base import Events, Output
from tunesmith.stages.judge import kept


def test_answers_are_kept_and_a_changed_one_is_asked_for_again(tmp_path):
    out = Output(tmp_path, Events(tmp_path / "events.jsonl").tagged(artifact="evaluate-1"))
    asked = []

    def make():
        asked.append(1)
        return ["red", "green"]

    assert kept(out, "base", make) == kept(out, "base", make) == ["red", "green"]
    assert len(asked) == 1
    path = tmp_path / "base.json"
    path.write_text(path.read_text().replace("green", "greem"))
    assert kept(out, "base", make) == ["red", "green"]
    assert len(asked) == 2
    assert json.loads(path.read_text()) == ["red", "green"]
    (said,) = out.events.read("damaged")
    assert "base.json: differs from what was written" in said["reason"]
