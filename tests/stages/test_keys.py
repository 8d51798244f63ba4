"""What a stage goes by, so that nothing is taken for done that was made from something else: models by what they hold, and every file that is read."""

import json
import shutil
from pathlib import Path

import pytest
from whole_runs import write_recipe

from tunesmith.base import Artifact, Run, Spec, Stage
from tunesmith.grading.reward_model import RewardModel
from tunesmith.models.find import files_of
from tunesmith.stages.pipeline import open_run


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    return write_recipe(tmp_path, tiny_folder)


def test_a_model_that_was_written_anew_is_another_model(recipe, tmp_path, tiny_folder, build):
    """Though it is called as before: no stage is taken for done that was made from what stood there then."""
    own = tmp_path / "own"
    shutil.copytree(tiny_folder, own)
    first = open_run(recipe, tmp_path / "run", (f"model={own}",)).stage("initialise")
    again = open_run(recipe, tmp_path / "run", (f"model={own}",)).stage("initialise")
    assert again.path == first.path
    build("llama", seed=8).model.save_pretrained(own)
    other = open_run(recipe, tmp_path / "run", (f"model={own}",))
    assert other.stage("initialise").path != first.path
    assert other.ask_base().path != open_run(recipe, tmp_path / "run").ask_base().path


def deployed_again(folder: Path, model: Path, note: str) -> str:
    """A run that deployed a model, or that was trained again, with other files beside the model."""

    def write(spec, *, out, note):
        shutil.copytree(model, out / "model")
        (out / "note.txt").write_text(note)

    Run(folder).once(Stage("deploy", 1, write), Spec(), note=note)
    return str(folder)


def test_what_a_model_that_is_named_by_its_run_became_is_part_of_every_key(recipe, tmp_path, tiny_folder):
    start, teacher = tmp_path / "sft", tmp_path / "teacher"
    settings = (
        f"model={deployed_again(start, tiny_folder, '1')}", f"finetune.objective={{kind: distill, teacher: {deployed_again(teacher, tiny_folder, '1')}}}",
        "finetune.epochs=0.2", "sample.system=base", "sample.rows=1", "sample.keep=pairs", "sample.samples=1", "sample.max_tokens=2",
    )  # fmt: skip

    def made() -> dict[str, Path]:
        pipeline = open_run(recipe, tmp_path / "r", settings)
        return {name: pipeline.stage(name).path for name in ("prepare", "initialise", "finetune", "sample")}

    first = made()
    assert made() == first
    deployed_again(teacher, tiny_folder, "2")
    second = made()
    assert [name for name in first if first[name] != second[name]] == ["finetune"]
    deployed_again(start, tiny_folder, "2")
    third = made()
    assert [name for name in first if second[name] != third[name]] == list(first)


def test_every_file_that_judges_pays_or_is_measured_on_is_part_of_a_key(recipe, tmp_path, tiny_folder, monkeypatch):
    judge = {"kind": "reward_model", "run": deployed_again(tmp_path / "judge", tiny_folder, "1")}
    paid = {"objective": {"kind": "grpo"}, "rollouts": {"rewards": [{"grader": judge}]}}
    (tmp_path / "general.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    pipeline = open_run(recipe, tmp_path / "r", (
        f"finetune.validation.metric={json.dumps(judge)}", "prune.method={kind: magnitude}", f"prune.recovery={json.dumps(paid)}", "prune.recovery.rollouts.samples=2",
        f"evaluate.general={tmp_path / 'general.jsonl'}",
    ))  # fmt: skip
    made, read = Artifact(tmp_path, {"files": {}}), {}
    (tmp_path / "settings.json").write_text('{"overrides": {}}')
    monkeypatch.setattr(Run, "once", lambda self, stage, *_, inputs=(), **__: read.update({stage.name: inputs}) or made)
    monkeypatch.setattr(pipeline, "initialise", lambda: made)
    pipeline.stage("evaluate")
    (found,) = (tmp_path / "judge").glob("deploy-*")
    assert read["finetune"] == read["prune"] == (found / "manifest.json",)
    assert read["evaluate"] == (tmp_path / "general.jsonl",)
    assert RewardModel(run=str(tiny_folder)).inputs == files_of(str(tiny_folder)) != ()
