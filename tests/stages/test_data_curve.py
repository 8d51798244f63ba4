"""A data curve: sizes are nested and stratified, share test rows and schedule, go on where they were stopped, and say what more rows would bring."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from curves import write_recipe
from typer.testing import CliRunner

from tunesmith.base import Artifact, DataError, Run
from tunesmith.base.errors import Interrupted
from tunesmith.base.files import read_json
from tunesmith.cli.app import app
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.grading.json_fields import JsonFields
from tunesmith.stages import ask
from tunesmith.stages.curve import Curve, data_curve
from tunesmith.stages.curve.measure import folder_of
from tunesmith.stages.curve.text import rows, sentences
from tunesmith.stages.evaluate import learnt_from
from tunesmith.stages.finetune import Finetune
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.plan import plans
from tunesmith.stages.recipe import read_recipe

SETTINGS = Curve(sizes=(0, 4, 8, 16), seeds=2, once_from=8, least_steps=2, most_steps=3, target=0.9, price=0.5)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("curve"), tiny_folder)


@pytest.fixture(scope="module")
def stopped(recipe):
    """A curve that was killed while the second training of the first size answered."""
    folder, asked = recipe.parent / "curve", []

    def work(pipeline, name):
        asked.append((name, pipeline.recipe.seed))
        if len(asked) == 2:
            pipeline.finetune()
            raise Interrupted(2)
        return pipeline.stage("ask")

    with pytest.raises(Interrupted):
        data_curve(recipe, SETTINGS, folder=folder, work=work)
    return folder, [path.name for path in folder.glob("*-*") if path.is_dir()]


@pytest.fixture(scope="module")
def made(recipe, stopped):
    folder, before = stopped
    return folder, before, data_curve(recipe, SETTINGS, folder=folder)


def test_a_killed_curve_computes_only_what_is_missing(made):
    folder, before, _ = made
    done = [event["artifact"] for event in Run(folder).events.read("done")]
    assert len(done) == len(set(done))
    assert set(before) <= set(done)
    for stage, count in {"prepare": 1, "finetune": 4, "rivals": 4, "ask": 4 + 2}.items():
        assert sum(name.startswith(f"{stage}-") for name in done) == count, stage


def test_sizes_are_nested_stratified_and_measured_on_the_same_rows(made):
    folder, _, found = made
    prepared = Run(folder).artifact("prepare")
    rows = load_split(prepared.path, "train")
    assert len(rows) == found["total"] == 20
    finetunes = [run["finetune"] for each in found["sizes"] for run in each["runs"]]
    parents = {read_json(folder / name / "manifest.json")["parents"][0]["id"] for name in finetunes}
    assert parents == {prepared.id}
    assert [run["rows"] for each in found["sizes"] for run in each["runs"]] == [4, 4, 8, 16]
    assert found["stratified"] == "answer.*"
    assert {figure["points"][0]["n"] for figure in found["figures"] if figure["name"] == "headline"} == {16}


def test_what_a_training_learnt_from_is_what_its_rivals_and_shots_come_from(made):
    folder, _, found = made
    prepared = Run(folder).artifact("prepare")
    rows = load_split(prepared.path, "train")
    parts = [
        [each.origin for each in learnt_from(prepared, Artifact.open(folder / run["finetune"]))]
        for run in (found["sizes"][0]["runs"] + found["sizes"][1]["runs"])
    ]
    assert [len(part) for part in parts] == [4, 4, 8]
    assert set(parts[0]) < set(parts[2])  # one seed
    assert set(parts[0]) != set(parts[1])  # another
    for size, part in ((4, parts[0]), (8, parts[2])):
        assert [rows[place].origin for place in Finetune(rows=size).places(rows, 0)] == part
    with pytest.raises(DataError, match=r"finetune.rows: 21 are wanted and there are 20"):
        Finetune(rows=21).places(rows, 0)


def test_a_plan_is_of_the_rows_that_are_learnt_from(recipe, made):
    rows = load_split(Run(made[0]).artifact("prepare").path, "train")
    few, all_rows = (
        next(plans(read_recipe(recipe, settings), rows)).estimate for settings in (("finetune.rows=8",), ())
    )
    assert (few.rows, few.steps, all_rows.rows, all_rows.steps) == (8, 1, 20, 3)


def test_every_size_takes_the_recipes_epochs_between_the_floor_and_the_cap(made):
    _, _, found = made
    assert [{run["steps"] for run in each["runs"]} for each in found["sizes"]] == [{2}, {2}, {2}]
    assert found["sizes"][0]["settings"] == ["finetune.rows=4", "finetune.epochs=2.0"]
    assert found["sizes"][2]["settings"] == ["finetune.rows=16"]


def test_size_0_is_the_base_and_differences_are_from_it(made, recipe):
    folder, _, found = made
    base = open_run(recipe, folder).ask_base()
    test = load_examples(Run(folder).artifact("prepare").path, "test")
    for place, grader in enumerate(open_run(recipe).recipe.evaluate.graders[:2]):
        (head,) = (f for f in found["figures"] if f["grader"] == grader.kind and f["name"] == "headline")
        point = grader.figures(test, read_json(base / "answers.json"))["headline"].point
        assert head["points"][0]["value"] == pytest.approx(point)
        assert [p["size"] for p in head["points"]] == [0, 4, 8, 16]
        for each in head["points"][1:]:
            assert each["value"] == pytest.approx(np.mean(each["seeds"]))
            assert each["against"]["base"]["value"] == pytest.approx(each["value"] - point)
            assert each["against"]["svm"]["low"] <= each["against"]["svm"]["value"] <= each["against"]["svm"]["high"]
        assert [p["size"] for p in head["systems"]["svm"]] == [4, 8, 16], place
        assert head["systems"]["few-shot"]["n"] == 16


def test_fields_and_classes_have_curves_of_their_own_and_corpus_scores_and_perplexity_too(made):
    _, _, found = made
    names = {(each["grader"], each["name"]) for each in found["figures"]}
    assert {("json_fields", "c"), ("json_fields", "s"), ("json_fields", "answer.*=s=big"), ("chrf", "headline"),
            ("perplexity", "headline")} <= names  # fmt: skip
    assert next(each for each in found["figures"] if each["grader"] == "chrf")["signature"].startswith("chrf|nrefs:1")
    assert found["figures"][0]["gained"]["from"] == 8
    assert json.dumps(found, allow_nan=False)


def test_the_forecast_tells_rows_and_what_they_cost(made):
    _, _, found = made
    told = found["forecast"]
    assert [each["rows"] for each in told["at"]] == [32, 160]
    for each in told["at"]:
        assert each["low"] <= each["high"]
        assert (each["more"], each["cost"]) == (each["rows"] - 20, (each["rows"] - 20) * 0.5)
    assert told["target"]["score"] == 0.9  # of no percentage
    assert told["calibration"]["of"] == 0
    assert told["errors"] is None
    enough = {
        **told["enough"],
        "rows": 9,
        "low": 4,
        "high": None,
    }  # as a curve says that may have fallen before its smallest size
    assert any(
        line.startswith("past 9 rows (at most 4 to more than 16,000) another doubling")
        for line in sentences({**found, "forecast": {**told, "enough": enough}})
    )


def test_rows_that_the_recipe_leaves_out_are_not_to_be_labelled_again(made, recipe, tmp_path):
    shutil.copytree(made[0], tmp_path / "c")
    found = data_curve(recipe, SETTINGS, folder=tmp_path / "c", assignments=("finetune.rows=16",))
    assert (found["total"], found["labelled"]) == (16, 20)
    assert [each["more"] for each in found["forecast"]["at"]] == [32 - 20, 160 - 20]


def test_a_slice_of_which_a_grader_asked_no_row_has_no_curve(made, recipe, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path / "c")
    real = JsonFields.figures

    def figures(self, examples, outputs):
        asked = np.array(["small" in each.gold for each in examples], dtype=np.float64)
        return {name: replace(one, statistics=one.statistics * asked[:, None]) for name, one in real(self, examples, outputs).items()}  # fmt: skip

    monkeypatch.setattr(JsonFields, "figures", figures)
    found = data_curve(recipe, SETTINGS, folder=tmp_path / "c")
    slices = {(each["grader"], each["name"]) for each in found["figures"] if "=" in each["name"]}
    assert ("chrf", "answer.*=s=big") in slices
    assert ("json_fields", "answer.*=s=big") not in slices
    assert any(each["grader"] == "json_fields" for each in found["figures"])


def test_a_curve_lies_beside_the_run_whatever_that_is_called(tmp_path):
    (tmp_path / "smollm2-0.5").mkdir()
    assert folder_of(tmp_path / "smollm2-0.5", None) == tmp_path / "smollm2-0.5-curve"
    assert folder_of(tmp_path / "smollm2.yaml", None) == Path("runs/smollm2-curve")
    assert folder_of(tmp_path / "smollm2.yaml", tmp_path) == tmp_path


def test_the_command_computes_nothing_again_and_writes_pages(made, recipe):
    folder, _, found = made
    before = sum(1 for _ in Run(folder).events.read("done"))
    command = ["data-curve", str(recipe), "--run", str(folder), "--sizes", "0,4,8,16", "--seeds", "2", "--once-from", "8",
               "--least-steps", "2", "--most-steps", "3", "--target", "0.9", "--price", "0.5"]  # fmt: skip
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().splitlines()[-1] == str(folder / "curve.html")
    assert sum(1 for _ in Run(folder).events.read("done")) == before
    assert read_json(folder / "curve.json") == json.loads(json.dumps(found))
    page, told = (folder / "curve.html").read_text(), (folder / "curve.md").read_text()
    assert page.count('<svg class="plot"') > 1
    assert "SVM" in page
    assert '<figure class="card" role="img"' not in page, "hides its caption from screen readers"
    assert "few-shot" in page
    assert "| 16 | 2 | 1 |" in told
    assert "| rows | steps | trainings | score | against base | SVM | against SVM | flag |\n| ---: |" in told
    assert "| from 8 to 16 |" in told
    assert "intervals over test rows and trainings, of which all sizes tell together" in told
    assert ElementTree.parse(folder / "curve.svg").getroot().tag.endswith("svg")


def test_the_table_leaves_out_columns_that_would_be_empty(made):
    _, _, found = made
    first = found["figures"][0]
    points = [{**point, "against": {"base": point["against"]["base"]} if point["size"] else {}, "flag": ""} for point in first["points"]]  # fmt: skip
    alone = {**found, "figures": [{**first, "points": points, "systems": {}}]}
    assert rows(alone)[0] == ("rows", "steps", "trainings", "score", "against base")
    heads, lines = rows(found)
    against = first["points"][-1]["against"]["svm"]["value"]
    assert dict(zip(heads, lines[-1], strict=True))["against SVM"].startswith(f"{against:+.1f} (")


def test_sizes_worse_than_the_base_are_flagged(recipe, tmp_path, monkeypatch):
    """The base is always right here, and what is tuned says nothing."""
    real, tuned = ask.merge, []
    monkeypatch.setattr(ask, "merge", lambda *given: (tuned.append(True), real(*given)))
    monkeypatch.setattr(ask, "answer", lambda _, test, *rest: ["" if tuned else each.gold for each in test])
    found = data_curve(
        recipe, Curve(sizes=(4,), seeds=1, least_steps=1), folder=tmp_path / "c", assignments=("evaluate.shots=0",)
    )
    head = found["figures"][0]
    assert [point["flag"] for point in head["points"]] == ["", "worse"]
    assert rows(found)[0][-1] == "flag"
    assert rows(found)[1][-1][-1] == "worse than base"
    assert "**worse than the base model with 4 rows**" in (tmp_path / "c" / "curve.md").read_text()
    assert "One training of each size says nothing" in (tmp_path / "c" / "curve.md").read_text()
    assert "too few for a curve" in found["forecast"]["reason"]
