"""The report's parts by themselves: the sentence, the choice of rows, and the geometry of the charts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import evaluate, run_until
from test_report import read

from tunesmith.base import Artifact, Output, Spec
from tunesmith.base.files import read_json, write_json
from tunesmith.stages.report import _status
from tunesmith.stages.report.answers import KINDS, choose
from tunesmith.stages.report.charts import MOST_POINTS, forest, panel, thin, ticks
from tunesmith.stages.report.verdict import sentence, standing


def test_a_difference_that_may_be_chance_is_called_so() -> None:
    def block(better: str, low: float, high: float) -> dict[str, Any]:
        figure = {"value": 50.0, "low": 45.0, "high": 55.0, "n": 100}
        gap = {"value": (low + high) / 2, "low": low, "high": high, "n": 100, "p": 0.5, "detectable": 5.0}
        return {
            "unit": "% of rows",
            "better": better,
            "systems": {"tuned": figure, "svm": figure},
            "differences": {"tuned - svm": gap},
        }

    assert "which may be chance" in sentence(block("higher", -3, 4), "tuned", "svm")
    assert "2.0 points fewer than the SVM (95 % interval −3.0 to −1.0)" in sentence(
        block("higher", -3, -1), "tuned", "svm"
    )
    unknown = block("higher", 1, 3)
    unknown["differences"]["tuned - svm"] |= {"low": None, "high": None}
    assert "which may be chance (95 % interval unknown)" in sentence(unknown, "tuned", "svm")
    assert standing(block("higher", 1, 3), "tuned", "svm") == "better"
    assert standing(block("lower", 1, 3), "tuned", "svm") == "worse"
    assert standing(block("lower", -3, -1), "tuned", "svm") == "better"
    assert "Tuned gets 50.0 % of the rows right (95 % interval 45.0 to 55.0)." in sentence(
        {**block("higher", 0, 0), "differences": {}}, "tuned", None
    )


@given(st.lists(st.sampled_from(sorted(KINDS)), max_size=80))
def test_chosen_rows_are_different_and_do_not_depend_on_order(kinds: list[str]) -> None:
    rows = [{"origin": f"f:{number}", "kind": kind} for number, kind in enumerate(kinds)]
    chosen = choose(rows)
    assert len(chosen) == min(12, len(rows)) == len({row["origin"] for row in chosen})
    assert choose(rows[::-1]) == chosen
    for kind in KINDS:
        assert sum(row["kind"] == kind for row in chosen) >= min(kinds.count(kind), 2)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_hold_the_range(low: float, width: float) -> None:
    found = ticks(low, low + width)
    tolerance = width * 1e-3
    assert found[0] <= low + tolerance
    assert found[-1] >= low + width - tolerance
    assert 2 <= len(found) <= 9
    assert found == sorted(set(found))


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3000))
def test_thinning_keeps_the_extremes(values: list[float]) -> None:
    points = list(enumerate(values))
    kept = thin(points)
    assert len(kept) <= MOST_POINTS
    assert min(value for _, value in kept) == min(values)
    assert max(value for _, value in kept) == max(values)
    assert list(kept) == sorted(kept)


def test_infinite_and_missing_figures_do_not_break_a_chart() -> None:
    nan, infinite = float("nan"), float("inf")
    chart = forest(
        {"base": {"value": infinite, "low": 1.0, "high": infinite}, "tuned": {"value": 2.0, "low": 1.0, "high": 3.0}},
        "tuned",
    )
    assert [(mark.name, mark.strong) for mark in chart.marks] == [("tuned", True)]
    assert chart.marks[0].left < chart.marks[0].dot < chart.marks[0].right
    (alone,) = forest({"base": {"value": 2.0, "low": None, "high": None}}).marks  # of one text nothing more is known
    assert (alone.left, alone.right) == (0, 100)
    assert panel("loss", [(1, nan)], last=10).clear == ""
    assert panel("loss", [(1, 2.0)], last=10).clear.startswith("M100.0 ")


def test_a_prompt_looked_for_beside_the_run_does_not_keep_it_from_being_complete():
    failed = {"prompt": {"state": "failed", "error": "no such luck"}}
    for asked in (True, False):
        recipe = {"evaluate": {"prompted": asked}}
        source = SimpleNamespace(stages=("prompt",), states=failed, recipe=recipe, retried=())
        assert (_status(source, None) is not None) == asked


def test_rows_are_judged_by_the_next_grader_where_the_code_of_one_is_not_given(tmp_path: Path) -> None:
    brief = {"kind": "function", "name": "brief"}
    assert "judged by exact" in read(run_until(tmp_path / "run", "evaluate", graders=[brief, {"kind": "exact"}])).text
    alone = read(run_until(tmp_path / "other", "evaluate", graders=[brief])).text
    assert "the code that brief judged by in the evaluation was not given, or has changed since" in alone
    assert "None of the graders" not in alone


def test_ways_of_prompting_have_the_decimals_of_their_grader(tmp_path: Path) -> None:
    figure = {"value": 0.8123, "low": 0.7, "high": 0.9}
    way = {"way": "plain", "about": "", "chosen": True, "shortened": 0, "tokens": 9, "development": figure}

    def prompted(spec: Spec, *parents: Artifact, out: Output, **given: Any) -> None:
        evaluate(spec, *parents, out=out, **given)
        found = {
            "grader": "rank",
            "unit": "of 1",
            "digits": 3,
            "rows": {"development": 8},
            "ways": [{**way, "test": figure}],
        }
        write_json(out / "results.json", {**read_json(out / "results.json"), "prompting": found})

    text = read(run_until(tmp_path / "run", "evaluate", evaluate=prompted)).text
    assert "0.812 (0.700 to 0.900) 0.812 (0.700 to 0.900)" in text
