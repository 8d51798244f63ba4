"""What is said while a stage works is the user's own words, whatever they look like."""

import io

import pytest

from tunesmith.base import Artifact, Events, Run
from tunesmith.cli import running
from tunesmith.cli.progress import following
from tunesmith.stages.merged import Merged


@pytest.fixture
def said(monkeypatch):
    """What the command line prints."""
    file = io.StringIO()
    monkeypatch.setattr(running.console, "_file", file)  # `file` would be put back as the stream of now
    monkeypatch.setattr(running.console, "_width", 200)
    return file


def test_classes_that_look_like_markup_are_printed_as_they_are(said, tmp_path):
    events = Events(tmp_path / "events.jsonl")
    with following(events, "finetune", running.console):
        events.write("classes", classes={name: {"epoch": 2, "rows": 3} for name in ("[spam]", "[/INST]", ":x:")})
        events.write("done", stage="finetune", seconds=1.0)
    assert "[spam] 2 of 3, [/INST] 2 of 3, :x: 2 of 3" in said.getvalue()


def test_so_are_reasons_tables_and_titles(said, tmp_path, monkeypatch):
    figure = {"value": 50.0, "low": 40.0, "high": 60.0}
    task = {"grader": "[/judge]", "unit": "% of [rows]", "systems": {"[base]": figure}, "differences": {}}
    metrics = {"tasks": {"[/run]": task}, "promote": False, "reasons": ["[/INST]: why"], "canaries": {"warnings": ["[/w]"]}}  # fmt: skip
    monkeypatch.setattr(running, "_report", lambda run: tmp_path / "[/report].html")
    merger = running.Merger.__new__(running.Merger)
    merger.run, merger.recipe = Run(tmp_path / "[bold]"), Merged(runs=("a", "b"))
    running._conclude(merger, Artifact(tmp_path, {"metrics": metrics}))
    for each in ("[/run]: [/judge] in % of [rows]", "[base]", "[/INST]: why", "warning [/w]", "[/report].html tells"):
        assert each in said.getvalue()


def test_so_are_variants(said, monkeypatch, tmp_path):
    variant = "prepare.system=[/INST]"
    pipeline = type("P", (), {"recipe": type("R", (), {"seed": 3}), "run": Run(tmp_path), "before": lambda *_: ()})()

    def compare(*_, work, **__):
        monkeypatch.setattr(running, "_stages", lambda *_: None)
        work(pipeline, variant)
        return {"rows": 1, "variants": [{"name": variant}], "figures": []}

    monkeypatch.setattr("tunesmith.stages.compare.compare", compare)
    monkeypatch.setattr(running, "open_run", lambda *_: pipeline)
    running.compare_variants(tmp_path, None, (), (), 1, False)
    assert f"{variant}, seed 3" in said.getvalue()
    assert f"difference from {variant}" in said.getvalue()
