"""The counting itself: a bound that textbooks state, and a trial that failed in silence is never lost."""

import json
import sys
from pathlib import Path

import pytest
import tally as counting
from harness import harness
from tally import Tally, environment, environment_of, upper_bound


@pytest.mark.parametrize(
    ("failures", "trials", "bound"), [(0, 50, 0.0582), (0, 300, 0.00994), (1, 20, 0.2161), (3, 3, 1.0)]
)
def test_the_bound_is_the_exact_one(failures, trials, bound):
    assert upper_bound(failures, trials) == pytest.approx(bound, abs=5e-5)


def test_what_did_not_hold_is_told_apart_by_whether_it_said_so():
    tally = Tally("R0", "nothing")
    tally.verdict("one", held=True)
    tally.verdict("two", held=False, said=True, reason="weights differ; a warning was printed")
    tally.verdict("three", held=False, reason="weights differ")
    summary = tally.summary()
    assert (summary["passes"], summary["silent"], summary["total"]) == (1, 1, 3)
    assert tally.failed == ["two: loud: weights differ; a warning was printed", "three: silent: weights differ"]
    assert summary["silent_at_most"] == pytest.approx(0.8647, abs=1e-4)


def test_the_table_marks_what_other_trials_came_to_and_counts_no_reading(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.setattr(counting, "RESULTS", tmp_path)
    from torture_table import EARLIER, tortured

    for name in ("R1", "X1-source"):
        counted = Tally(name, f"{name} holds")
        counted.verdict("one", held=True)
        counted.keep()
    peer = Tally("R1", "R1 holds", "trl", {**environment(), "trl": "1.16.0", "peft": "0.21.0"})
    peer.verdict("one", held=False)
    peer.keep()
    kept = {file.stem: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert {one["harness"] for found in kept.values() for one in found.values()} == {harness()}
    page = tortured(kept)
    assert "in 1 trials (X1-source reads the source and is not counted). Where a row has a dagger (†)" in page
    assert "The other side: trl 1.16.0" in page
    assert EARLIER not in page
    kept["R1"]["tunesmith"]["harness"] = "another"
    assert f"| R1 | R1 holds{EARLIER} | 1 |" in tortured(kept)
    del kept["R1"]["trl"]["harness"]
    assert f"0 of 1{EARLIER} | 1 |" in tortured(kept)


def test_a_peer_tells_its_own_versions(tmp_path):
    """Its Python is asked, whatever is installed here."""
    said = tmp_path / "python"
    said.write_text(
        f"""#!{sys.executable}\nprint('{{"python": "3.0.0", "trl": "1.2.3", "transformers": "4.5.6"}}')\n"""
    )
    said.chmod(0o755)
    found = environment_of(str(said))
    assert (found["trl"], found["transformers"], found["cores"]) == ("1.2.3", "4.5.6", environment()["cores"])
    assert "tunesmith" not in found
