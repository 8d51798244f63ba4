"""What a search makes of trials that come to nothing: they cost what they cost, speak against the scores that praised them, and hold up nobody."""

import math
import os

import pytest
from scipy import stats
from searches import fail_once, results, trials, write_recipe

import tunesmith
from tunesmith.base import ArtifactError, ConfigError, Run
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.search.study import Study


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("failed"), tiny_folder)


@pytest.fixture
def study(recipe, tmp_path):
    """A study in its folder, by what its trials may need."""
    pipeline = open_run(recipe, tmp_path / "r", ("search.trials=1",))
    prepared = pipeline.prepare()
    (tmp_path / "study").mkdir()
    return lambda budget: Study(tmp_path / "study", pipeline.recipe, prepared, pipeline.run.events, budget)


def test_a_trial_that_was_best_early_and_then_failed_is_the_worst_at_the_end(recipe, tmp_path, monkeypatch):
    """In an audit; the choice without one would have gone to the next best, and what the failed one cost is counted."""
    fail_once(monkeypatch)
    tunesmith.search(recipe, "search.audit=true", folder=tmp_path / "r")
    run = Run(tmp_path / "r")
    found = results(run)
    best, second, _ = (trial["number"] for trial in sorted(found["trials"], key=lambda trial: trial["scores"]["0.2"]))
    assert found["trials"][best]["state"] == "failed"
    assert found["chosen_early"] == second
    final = [trial["scores"].get("1", math.inf) for trial in found["trials"]]
    assert final[best] == math.inf
    for mark, each in found["trust"].items():
        early = [trial["scores"].get(mark) for trial in found["trials"]]
        pairs = [(before, after) for before, after in zip(early, final, strict=True) if before is not None]
        assert each["trials"] == len(pairs) == (2 if mark == "0.4" else 3)
        if len(pairs) == 3:
            assert each["spearman"]["value"] == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    steps = {event["step"]: event["tokens"] for event in trials(run)[best].run.events.read("step")}
    assert found["trials"][best]["tokens"] == sum(steps.values())
    assert max(steps) == found["trials"][best]["planned_steps"]
    assert found["tokens"] == sum(trial["tokens"] for trial in found["trials"])


def test_a_trial_that_was_planned_for_more_memory_is_not_begun_with_less(study):
    plenty = study(1 << 40)
    trial = plenty._proposed([])
    assert plenty._planned(trial, plenty.recipe) is None
    assert "needs about" in study(1 << 20)._planned(trial, plenty.recipe)
    study(1 << 20).work()
    assert trial.refused["state"] == "infeasible"
    plenty.work()  # which has room again
    assert trial.refused is None
    assert trial.score(1.0) is not None
    before = trial.planned
    assert "needs about" in study(1 << 20)._planned(trial, plenty.recipe)
    assert trial.planned == before  # by which it was trained


def test_a_trial_whose_folder_cannot_be_used_is_named_and_not_waited_for(study):
    trial = study(None)._proposed([])
    os.mkdir(trial.folder / ".lock")
    with pytest.raises(ArtifactError, match=f"{trial.folder}: cannot write here"):
        study(None).work()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("finetune.most_tokens=1000", "leave it null and set finetune.epochs"),
        ("search.space={finetune.most_tokens: [100, 200]}", "search finetune.epochs"),
    ],
)
def test_trainings_that_end_when_their_tokens_are_spent_are_not_searched(recipe, setting, said):
    """A fifth of the steps of all epochs may be more than all that they would take."""
    with pytest.raises(ConfigError, match=said):
        open_run(recipe, None, (setting, "finetune.schedule.shape=constant", "finetune.schedule.warmup=0"))
