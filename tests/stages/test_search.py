"""A search: trials stop early and go on bit for bit, nothing is trained twice whoever is killed, and the winner is what is deployed."""

import gc
import json
import re
import shutil
from dataclasses import replace

import pytest
from scipy import stats
from searches import SPACE, fail_once, learnt, results, trials, write_recipe

import tunesmith
from tunesmith.base import MachineError, Run
from tunesmith.base.spec import read_yaml
from tunesmith.stages import finetune
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.report import write
from tunesmith.stages.search.trial import Trial


@pytest.fixture(scope="module", autouse=True)
def nothing_is_collected():
    """Measuring memory begins by collecting garbage, which takes longer than a training as small as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("search"), tiny_folder)


@pytest.fixture(scope="module")
def searched(recipe):
    folder = recipe.parent / "run"
    tunesmith.run(recipe, folder=folder)
    return Run(folder), results(Run(folder))


def test_the_first_trial_is_the_recipe_and_the_best_go_on_to_the_end(searched):
    _, found = searched
    own, *others = found["trials"]
    assert own["settings"] == {
        "finetune.optimizer.learning_rate": 0.01, "initialise.adapter.rank": 4, "initialise.adapter.alpha": 2, "finetune.batch": 4,
    }  # fmt: skip
    assert len({json.dumps(trial["settings"]) for trial in found["trials"]}) == 3
    for trial in others:
        assert 1e-3 <= trial["settings"]["finetune.optimizer.learning_rate"] <= 5e-2
        assert trial["settings"]["initialise.adapter.rank"] in (2, 4, 8)
    early = sorted(found["trials"], key=lambda trial: trial["scores"]["0.2"])
    assert {trial["number"] for trial in early[:1]} == {
        t["number"] for t in found["trials"] if t["state"] == "finished"
    }
    assert found["winner"] == min(early[:1], key=lambda trial: trial["scores"]["1"])["number"]
    assert found["states"] == {"finished": 1, "stopped": 2, "infeasible": 0, "failed": 0}
    for trial in found["trials"]:
        part = 0.2 if trial["state"] == "stopped" else 1
        assert trial["steps"] == round(part * trial["planned_steps"])
        assert trial["planned_steps"] == 2 * 40 // trial["settings"]["finetune.batch"]
    assert found["tokens"] == sum(trial["tokens"] for trial in found["trials"])


def test_a_trial_that_was_continued_is_the_training_that_was_never_stopped(searched, recipe, tmp_path):
    run, found = searched
    trial = trials(run)[found["winner"]]
    assert trial.number > 0  # else the recipe, of which the other tests have enough
    settings = [f"{path}={value}" for path, value in found["overrides"].items()]
    ratio, rank = (trial.settings[f"initialise.adapter.{name}"] for name in ("alpha", "rank"))
    assert found["overrides"]["initialise.adapter.alpha"] == ratio * rank
    whole = tunesmith.finetune(recipe, "search.trials=0", *settings, folder=tmp_path / "whole")
    assert learnt(trial.made(1.0)) == learnt(whole.path)
    assert trial.score(1.0) == whole.metrics["best_value"]
    assert whole.metrics["tokens"] == found["trials"][trial.number]["tokens"]


def test_the_winner_is_what_finetune_evaluate_and_deploy_go_on_with(searched, recipe):
    run, found = searched
    winner = trials(run)[found["winner"]]
    tuned = run.artifact("finetune")
    assert learnt(tuned.path) == learnt(winner.made(1.0))
    assert tuned.manifest["context"]["adapter"]["rank"] == winner.settings["initialise.adapter.rank"]
    assert tuned.manifest["spec"]["batch"] == winner.settings["finetune.batch"]
    assert run.artifact("initialise").manifest["spec"]["adapter"] == tuned.manifest["context"]["adapter"]
    assert tuned.manifest["seconds"] < 1  # handed on, not trained again
    assert tuned.metrics["steps"] == tuned.metrics["planned_steps"] == found["trials"][found["winner"]]["steps"]
    steps = [event["step"] for event in run.events.tagged(artifact=tuned.path.name).read("step")]
    assert sorted(set(steps)) == list(range(1, tuned.metrics["steps"] + 1))
    assert run.artifact("deploy")
    assert open_run(run.path).recipe.search == open_run(recipe).recipe.search  # the folder stays one of a search


def test_a_second_run_computes_nothing(searched, recipe):
    run, _ = searched
    before = [sum(1 for _ in each.read("done")) for each in (run.events, *(trial.run.events for trial in trials(run)))]
    tunesmith.run(recipe, folder=run.path)
    tunesmith.evaluate(run.path)
    assert before == [sum(1 for _ in each.read("done")) for each in (run.events, *(t.run.events for t in trials(run)))]


@pytest.fixture(scope="module")
def audited(recipe):
    folder = recipe.parent / "audited"
    tunesmith.search(recipe, "search.audit=true", "search.trials=3", folder=folder)
    return Run(folder), results(Run(folder))


def test_an_audit_trains_all_to_the_end_and_changes_no_score(audited, searched):
    """Neither the scores of the same trials, nor the weights of those that were continued without it."""
    (run, found), (plain, before) = audited, searched
    assert found["states"]["finished"] == 3
    for trial in found["trials"]:
        other = before["trials"][trial["number"]]
        assert list(trial["scores"]) == ["0.1", "0.2", "0.4", "1"]
        assert trial["settings"] == other["settings"]
        assert trial["scores"]["0.2"] == other["scores"]["0.2"]
        if other["state"] == "finished":
            assert learnt(trials(run)[trial["number"]].made(1.0)) == learnt(trials(plain)[trial["number"]].made(1.0))
    assert list(found["trust"]) == ["0.1", "0.2", "0.4"]
    for mark, each in found["trust"].items():
        early, final = ([trial["scores"][name] for trial in found["trials"]] for name in (mark, "1"))
        assert each["spearman"]["value"] == pytest.approx(stats.spearmanr(early, final).statistic)
    assert found["winner"] == min(found["trials"], key=lambda trial: trial["scores"]["1"])["number"]
    assert found["gain"]["share"] == 1
    assert found["gain"]["better_by"] == found["trials"][0]["scores"]["1"] - min(
        t["scores"]["1"] for t in found["trials"]
    )


def test_halving_sends_the_better_half_on_to_the_same_bits(audited, recipe, tmp_path):
    tunesmith.search(recipe, "search.scheme=halving", "search.trials=2", folder=tmp_path / "r")
    run = Run(tmp_path / "r")
    found = results(run)
    left = [[t for t in found["trials"] if mark in t["scores"]] for mark in ("0.1", "0.2", "0.4", "1")]
    assert [len(each) for each in left] == [2, 1, 1, 1]
    assert left[1] == [min(left[0], key=lambda trial: trial["scores"]["0.1"])]
    whole = trials(audited[0])[found["winner"]]
    assert learnt(whole.made(1.0)) == learnt(trials(run)[found["winner"]].made(1.0))
    assert [trial["scores"]["0.1"] for trial in found["trials"]] == [
        t["scores"]["0.1"] for t in audited[1]["trials"][:2]
    ]


def test_the_place_of_a_trial_that_fails_on_its_way_is_the_next_bests(searched, recipe, tmp_path, monkeypatch):
    """Though only one is sent to the end."""
    fail_once(monkeypatch)
    tunesmith.search(recipe, folder=tmp_path / "r")
    found = results(Run(tmp_path / "r"))
    order = [t["number"] for t in sorted(searched[1]["trials"], key=lambda trial: trial["scores"]["0.2"])]
    assert found["trials"][order[0]]["state"] == "failed"
    assert found["winner"] == order[1]
    assert found["states"] == {"finished": 1, "stopped": 1, "infeasible": 0, "failed": 1}


def test_the_winner_is_one_of_those_that_this_search_sends_to_the_end(recipe, tmp_path, monkeypatch):
    """Not one that is there because an earlier search kept more: the best at the end is the worst early here."""
    settings = ("search.sampler=grid", "search.trials=2", "search.space={finetune.batch: [4, 8]}")
    tunesmith.search(recipe, *settings, "search.keep=2", folder=tmp_path / "r")
    real = Trial.metrics

    def metrics(trial, until):
        found = real(trial, until)
        return found if until == 1 else {**found, "value": -real(trial, 1.0)["value"]}

    monkeypatch.setattr(Trial, "metrics", metrics)
    tunesmith.search(recipe, *settings, "search.keep=1", folder=tmp_path / "r")
    found = results(Run(tmp_path / "r"))
    assert found["states"]["finished"] == 2
    assert found["winner"] == max(found["trials"], key=lambda trial: trial["scores"]["1"])["number"]


def test_what_is_damaged_is_trained_again_and_not_handed_on(searched, recipe, tmp_path):
    shutil.copytree(searched[0].path, tmp_path / "r")
    run = Run(tmp_path / "r")
    shutil.rmtree(run.artifact("search").path)
    (loser,) = [trial for trial in trials(run) if trial.number == int(searched[1]["winner"] == 0)]
    manifest = loser.made(0.2) / "manifest.json"
    manifest.write_text(re.sub(r'("value": )[\d.]+', r"\g<1>0.001", manifest.read_text()))  # it would have won
    assert loser.score(0.2) is None
    (weights,) = trials(run)[searched[1]["winner"]].made(1.0).glob("adapter/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80?")
    tunesmith.search(recipe, folder=run.path)
    assert learnt(run.artifact("search").path) == learnt(searched[0].artifact("search").path)
    assert list(trials(run)[searched[1]["winner"]].run.events.read("damaged"))


def test_what_another_version_of_training_learnt_is_not_handed_on(searched, recipe, tmp_path, monkeypatch):
    shutil.copytree(searched[0].path, tmp_path / "r")

    def begun(study):
        raise MachineError(f"{study.folder.name} was begun")

    pipeline = open_run(recipe, tmp_path / "r")
    pipeline.work = begun
    assert pipeline.search().path.name == searched[0].artifact("search").path.name
    monkeypatch.setattr(finetune, "STAGE", replace(finetune.STAGE, version=finetune.STAGE.version + 1))
    pipeline = open_run(recipe, tmp_path / "r")
    pipeline.work = begun
    with pytest.raises(MachineError, match="was begun"):
        pipeline.search()


def test_a_search_leaves_to_memory_what_the_recipe_leaves_to_it(searched):
    """Else the folder would be one of another search than the recipe."""
    run, _ = searched
    assert read_yaml(run.path / "resolved.yaml")["finetune"]["activation_checkpointing"] == "auto"
    assert run.artifact("finetune").manifest["spec"]["activation_checkpointing"] is False


def test_more_trials_go_on_from_those_that_are_there(searched, recipe, tmp_path):
    shutil.copytree(searched[0].path, tmp_path / "r")
    run = Run(tmp_path / "r")
    tunesmith.search(recipe, "search.trials=4", folder=run.path)
    assert [trial["settings"] for trial in results(run)["trials"]][:3] == [t["settings"] for t in searched[1]["trials"]]
    assert [sum(1 for _ in trial.run.events.read("started")) for trial in trials(run)] == [
        1 + (trial["state"] == "finished") for trial in searched[1]["trials"]
    ] + [1 + (results(run)["trials"][3]["state"] == "finished")]


def test_the_report_draws_the_search(searched, audited):
    page = write(searched[0]).read_text()
    winner = searched[1]["winner"]
    assert f"Trial {winner} won: loss" in page
    assert page.count('<figure class="panel scatter"') == 1 + len(
        SPACE
    )  # history and slices; one trial at the end is nothing to plot
    assert len(re.findall(r"<title>trial \d</title></path>", page)) == 3
    assert "Whether the early score can be trusted is not known here" in page
    page = write(audited[0]).read_text()
    assert page.count("loss at the end, by that at") == 2 * 3
    each = audited[1]["trust"]["0.2"]
    assert f"At 20 %: {each['stayed']} of the best 3 stayed there at the end; chance alone keeps 3.0" in page
