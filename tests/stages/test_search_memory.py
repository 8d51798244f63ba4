"""What a search makes of memory: trials that would not fit are not started, each gets what fits it, and what dies of it is not taken up for ever."""

import json

import pytest
from searches import results, trials, write_recipe

import tunesmith
from tunesmith.base import Run
from tunesmith.stages import plan
from tunesmith.stages.estimate import gigabytes
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.report import write
from tunesmith.stages.search import study as study_stage
from tunesmith.stages.search import trial as trial_stage
from tunesmith.stages.search.study import Study


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("memory"), tiny_folder)


def test_what_would_not_fit_is_not_started_and_what_fails_is_not_repeated(recipe, tmp_path, monkeypatch):
    """Of four combinations two need more memory than there is, and one has a learning rate that no loss survives."""
    own = open_run(recipe, None, ("search.trials=0",)).recipe
    free = next(plan.plans(own, plan.prepared(own))).estimate.needed + (8 << 20)
    for module in (plan, study_stage):
        monkeypatch.setattr(module, "available_memory", lambda: free)
    space = "search.space={finetune.optimizer.learning_rate: [0.01, 1.0e+30], initialise.adapter.rank: [4, 4000]}"
    settings = [space, "search.sampler=grid", "search.trials=9", "finetune.clip=0"]
    tunesmith.search(recipe, *settings, folder=tmp_path / "r")
    run = Run(tmp_path / "r")
    found = results(run)
    assert found["states"] == {"finished": 1, "stopped": 0, "infeasible": 2, "failed": 1}
    for trial in found["trials"]:
        if trial["state"] == "infeasible":
            assert trial["settings"]["initialise.adapter.rank"] == 4000
            assert f"{gigabytes(free)} free" in trial["reason"]
            assert not list(trials(run)[trial["number"]].folder.glob("train-*"))
        if trial["state"] == "failed":
            assert "not finite" in trial["reason"]
    assert found["winner"] == 0
    before = [sum(event["event"] != "cached" for event in trial.run.events.read()) for trial in trials(run)]
    tunesmith.search(recipe, *settings, "search.keep=1", folder=run.path)
    assert before == [sum(event["event"] != "cached" for event in trial.run.events.read()) for trial in trials(run)]
    page = write(run).read_text()
    assert "was infeasible: needs about" in page
    for module in (plan, study_stage):
        monkeypatch.setattr(module, "available_memory", lambda: 1 << 50)
    tunesmith.search(recipe, *settings, "search.keep=2", folder=run.path)  # there is more room now
    assert results(run)["states"]["infeasible"] == 0


def test_what_memory_decides_is_decided_for_each_trial(recipe, tmp_path):
    """The larger batch fits only if layers are computed again, the smaller one without."""
    space = {"finetune.batch": [4, 32]}
    settings = (f"search.space={json.dumps(space)}", "search.sampler=grid", "search.trials=2", "search.keep=2")
    pipeline = open_run(recipe, tmp_path / "r", settings)
    prepared, rows = pipeline.prepare(), plan.prepared(pipeline.recipe)
    free = needed(pipeline.recipe, rows, 32, True)
    assert needed(pipeline.recipe, rows, 4, False) < free < needed(pipeline.recipe, rows, 32, False)
    study = Study(tmp_path / "study", pipeline.recipe, prepared, pipeline.run.events, free)
    study.work()
    assert {trial.settings["finetune.batch"]: trial.spec["activation_checkpointing"] for trial in study.trials()} == {
        4: False,
        32: True,
    }


def test_what_kills_its_process_is_not_taken_up_for_ever(recipe, tmp_path, monkeypatch):
    """Killed without a word at the same place, three times; or told that there is no memory, until there is more."""
    pipeline = open_run(recipe, tmp_path / "r", ("search.trials=1",))
    prepared, budget = pipeline.prepare(), 1 << 40

    def study(name, more=0):
        return Study(tmp_path / name, pipeline.recipe, prepared, pipeline.run.events, budget + more)

    def died(name, *killed_for_memory):
        """A trial whose process did some steps, and then died again and again at the same place."""
        of = study(name)
        of.folder.mkdir()
        trial = of._proposed([])
        trial.run.events.write("step", step=2)
        for count in killed_for_memory:
            monkeypatch.setattr(trial_stage, "killed_for_memory", lambda count=count: count)
            trial.taken_up()
            trial.run.events.write("step", step=2)
        return of, trial

    for name, *counts, now in [("told", 0, 1, 2, 3), ("other", 5, 5, 5, 6, 7, 8), ("not told", *4 * [None])]:
        deadly, trial = died(name, *counts)
        monkeypatch.setattr(trial_stage, "killed_for_memory", lambda now=now: now)
        deadly.work()
        assert trial.refused["state"] == "failed"
        assert (
            f"died {len(counts)} times at the same place, as one does that takes too much memory"
            in trial.refused["reason"]
        )
    deadly, trial = died("by hand", *20 * [7])
    deadly.work()
    assert "died 20 times at the same place, whatever it died of" in trial.refused["reason"]
    _, trial = died("by hand, less often", *19 * [7])
    assert trial.deaths() == (19, 0)
    trial.run.events.write("step", step=3)
    assert trial.deaths() == (1, 0)  # those before it got on
    with monkeypatch.context() as patch:
        patch.setattr(trial_stage, "boot", lambda: "of another machine")
        patch.setattr(trial_stage, "killed_for_memory", lambda: 10**6)
        assert trial.deaths() == (1, 0)  # only the machine on which it died could tell
    trial.run.events.write("interrupted")
    assert trial.deaths() == (0, 0)

    def exhausted(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(trial_stage, "begin", exhausted)
        study("large").work()
    (large,) = study("large").trials()
    assert large.refused["state"] == "infeasible"
    study("large").work()
    assert large.refused
    study("large", 1).work()
    assert not large.refused
    assert large.score(0.2) is not None


def needed(recipe, rows, batch: int, checkpointing: bool) -> int:
    tune = recipe.finetune.model_copy(update={"batch": batch, "activation_checkpointing": checkpointing})
    return next(plan.plans(recipe.model_copy(update={"finetune": tune}), rows)).estimate.needed
