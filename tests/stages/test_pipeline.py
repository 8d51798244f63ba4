"""Whole runs: killed and resumed ones end with the same bits, and what was made is made anew where something changed."""

import datetime
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from whole_runs import write_recipe

import tunesmith
from tunesmith.base import Artifact, BusyError, Output, Run
from tunesmith.base.files import read_json
from tunesmith.data.prepared import load_split
from tunesmith.models.load import load_tokenizer
from tunesmith.stages import finetune, judge, rendering
from tunesmith.stages.finetune import Finetune, begin
from tunesmith.stages.pipeline import ORDER, Pipeline, open_run
from tunesmith.stages.validation import Judge


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    return write_recipe(tmp_path, tiny_folder)


def start(recipe: Path, folder: Path) -> subprocess.Popen:
    """`tunesmith run` in a process of its own."""
    command = [sys.executable, "-c", "from tunesmith.cli import main; main()", "run", str(recipe), "--run", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int) -> None:
    """Until the run's events hold a step, at most a minute."""
    for _ in range(6000):
        if any(event["step"] >= step for event in Run(folder).events.read("step")):
            return
        time.sleep(0.01)
    raise TimeoutError(folder)


@contextmanager
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within this block the power goes after the fifth step of a training."""
    note = finetune.Training._note

    def noted(self, step, seconds):
        note(self, step, seconds)
        if step.number == 4:
            raise KeyError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(finetune.Training, "_note", noted)
        yield


def content(folder: Path) -> dict[str, str]:
    """sha256 of everything a run made that others use."""
    run = Run(folder)
    return {
        f"{stage}/{name}": entry["sha256"]
        for stage in ("finetune", "deploy")
        for name, entry in run.artifact(stage).manifest["files"].items()
        if name.endswith((".safetensors", "config.json"))
    }


def test_killed_runs_end_with_the_same_bits(recipe, tmp_path):
    whole = start(recipe, tmp_path / "whole")
    assert whole.wait(120) == 0, whole.stderr.read()
    expected = content(tmp_path / "whole")
    killed = tmp_path / "killed"
    for step, number, code in (
        (2, signal.SIGKILL, -9),
        (7, signal.SIGTERM, 143),
        (14, signal.SIGINT, 130),
        (19, signal.SIGKILL, -9),
    ):
        process = start(recipe, killed)
        wait_for_step(killed, step)
        process.send_signal(number)
        assert process.wait(60) == code, process.stderr.read()
        if code > 0:
            assert Run(killed).states["finetune"]["state"] == "interrupted"
    last = start(recipe, killed)
    assert last.wait(120) == 0, last.stderr.read()
    assert content(killed) == expected
    assert [event["step"] for event in Run(killed).events.read("resumed")]


def test_a_run_goes_on_another_day_with_a_template_that_tells_the_date(recipe, tmp_path, tiny_folder, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "dated")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + template)

    class Yesterday(datetime.date):
        @classmethod
        def today(cls):
            return cls(2024, 2, 29)

    monkeypatch.setattr(rendering, "date", Yesterday)
    pipeline = open_run(recipe, tmp_path / "run", (f"model={folder}",))
    prepared = pipeline.stage("prepare")
    row = load_split(prepared.path, "train")[0]
    asked_on = "Today is 29 Feb 2024."
    read = load_tokenizer(str(folder)).decode
    assert read(row.sequences[0].tokens).startswith(asked_on)
    claims = read_json(pipeline.stage("initialise") / "proof.json")["claims"]
    assert [claim["holds"] for claim in claims if claim["claim"] == "training tokens are serving tokens"] == [True]
    settings = Finetune(objective={"kind": "grpo"}, rollouts={"rewards": [{"grader": {"kind": "exact"}}], "samples": 2, "max_tokens": 2})  # fmt: skip
    begun = begin(
        settings, prepared, Output(tmp_path / "out", pipeline.run.events), str(folder), "fp32", {"kind": "lora"}, 0
    )
    (rolled, *_) = begun.training.data.roll(0)
    assert read(rolled.sequences[0].tokens).startswith(asked_on)
    generate, prompts = judge.generate, []
    monkeypatch.setattr(
        judge, "generate", lambda loaded, given, sampling: prompts.extend(given) or generate(loaded, given, sampling)
    )
    pipeline.stage("evaluate")
    assert prompts
    assert all(read(prompt).startswith(asked_on) for prompt in prompts)


def test_what_was_best_in_steps_that_are_done_anew_is_forgotten(recipe, tmp_path, monkeypatch):
    """As on a machine with another number of processors, whose sums differ: the second time other weights are the best."""
    settings = ("finetune.validation.every=2", "finetune.checkpoint_every=100", "finetune.epochs=1.0")
    told = iter([1.0, 0.5, 1.0, 1.5, 1.2, 1.4, 1.1, 1.3, 1.6, 1.7, 1.8, 1.9])
    monkeypatch.setattr(Judge, "_value", lambda self, loaded: next(told))
    with cut_off(monkeypatch), pytest.raises(KeyError, match="power cut"):
        open_run(recipe, tmp_path / "run", settings).locked("finetune")
    done = open_run(recipe, tmp_path / "run", settings).locked("finetune")
    assert done.metrics["best_step"] == 2


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_run_that_learns_from_its_own_answers_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch, kind):
    """It is cut off in the middle of two updates on the same answers, whose sampling must then be repeated."""
    settings = [
        f"finetune.objective={{kind: {kind}, beta: 0.02}}", "finetune.rollouts.rewards=[{grader: {kind: chrf}}, {grader: {kind: exact}, weight: 2}]",
        "finetune.rollouts.samples=3", "finetune.rollouts.max_tokens=5", "finetune.rollouts.updates=2", "finetune.epochs=1.0",
        "finetune.batch=8", "finetune.micro_batch=4", "finetune.checkpoint_every=2", "evaluate.graders=[{kind: exact}]",
        "initialise.adapter.dropout=0",
    ]  # fmt: skip
    whole = tunesmith.run(recipe, *settings, folder=tmp_path / "whole")
    steps = [event for event in Run(whole).events.read("step")]
    assert len(steps) == 8
    assert {"reward", "reward_chrf", "answer_tokens", "divergence"} <= set(steps[0])
    assert steps[0]["divergence"] == 0 != steps[-1]["divergence"]
    assert ("value_error" in steps[0]) == (kind == "ppo")
    assert {event["metric"] for event in Run(whole).events.read("validation")} == {"reward"}
    note, done = finetune.Training._note, []

    def cut_off(self, step, seconds):
        note(self, step, seconds)
        done.append(step.number)
        if step.number == 4 and done.count(4) == 1:
            raise RuntimeError("power")

    monkeypatch.setattr(finetune.Training, "_note", cut_off)
    with pytest.raises(RuntimeError, match="power"):
        tunesmith.run(recipe, *settings, folder=tmp_path / "cut")
    tunesmith.run(recipe, *settings, folder=tmp_path / "cut")
    assert done == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert ("finetune/adapter/head.safetensors" in content(whole)) == (kind == "ppo")


def test_a_training_ends_when_its_tokens_are_spent_killed_or_not(recipe, tmp_path, monkeypatch):
    whole = open_run(recipe, tmp_path / "whole")
    whole.locked("finetune")
    steps = [event["distinct"] for event in whole.run.events.read("step")]
    most = sum(steps[:5]) - 1
    settings = (f"finetune.most_tokens={most}", "finetune.schedule={shape: constant, warmup: 2}")
    cut = open_run(recipe, tmp_path / "cut", settings)
    made = cut.locked("finetune")
    assert made.metrics["steps"] == 5 < made.metrics["planned_steps"] == len(steps)
    assert [event["distinct"] for event in cut.run.events.read("step")] == steps[:5]
    assert [event["step"] for event in cut.run.events.read("validation")][-1] == 5  # what was paid for is looked at
    for number, way in enumerate(("micro_batch=1", "share_prefixes=false")):
        parts = open_run(recipe, tmp_path / f"parts{number}", (*settings, f"finetune.{way}"))
        assert parts.locked("finetune").metrics["steps"] == 5
        assert next(parts.run.events.read("step"))["distinct"] > steps[0]

    def killed(*_, **__):
        raise KeyboardInterrupt

    stopped = open_run(recipe, tmp_path / "stopped", (*settings, "finetune.checkpoint_every=2"))
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.stages.finetune.conclude", killed)
        with pytest.raises(KeyboardInterrupt):
            stopped.locked("finetune")
    again = open_run(recipe, tmp_path / "stopped", (*settings, "finetune.checkpoint_every=2"))
    assert again.locked("finetune").metrics["learnt_sha256"] == made.metrics["learnt_sha256"]
    assert len(list(again.run.events.read("step"))) == 5


def test_a_second_run_computes_nothing(recipe, tmp_path):
    first = tunesmith.run(recipe, folder=tmp_path / "r")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")}
    again = tunesmith.run(recipe, folder=tmp_path / "r")
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*.safetensors")}
    assert (again / "report.html").stat().st_size > 10_000
    assert open_run(first).recipe.finetune.activation_checkpointing is False  # what auto came to, not auto
    assert len(list(tunesmith.finetune(first).path.parent.glob("finetune-*"))) == 1
    changed = tunesmith.finetune(first, "finetune.epochs=2.0")
    assert changed.path != Artifact.open(next(first.glob("finetune-*"))).path or changed.metrics["planned_steps"] == 16
    assert Run(first).artifact("prepare").manifest["stage"] == "prepare"


def test_a_whole_run_holds_its_folder_until_its_report_is_written(recipe, tmp_path, monkeypatch):
    folder, done = tmp_path / "run", []

    def try_to_work_there(*_):
        with pytest.raises(BusyError), Run(folder).lock():
            pass
        done.append(True)

    monkeypatch.setattr(Pipeline, "stage", try_to_work_there)
    monkeypatch.setattr("tunesmith.stages.report.write", try_to_work_there)
    tunesmith.run(recipe, folder=folder)
    assert len(done) == len(ORDER) + 1
    with Run(folder).lock(), pytest.raises(BusyError):
        tunesmith.run(recipe, folder=folder)
    assert len(done) == len(ORDER) + 1, "wrote into a folder where another works"


def test_a_folder_that_is_named_is_where_it_goes(recipe, tmp_path):
    """Whether the settings come from a recipe or from another run, which stays as it is."""
    first = tunesmith.prepare(recipe, folder=tmp_path / "one")
    before = Run(tmp_path / "one").states
    second = tunesmith.prepare(tmp_path / "one", "prepare.max_tokens=64", folder=tmp_path / "two")
    assert second.path.parent == tmp_path / "two"
    assert (first.path.name != second.path.name, Run(tmp_path / "one").states) == (True, before)


def test_a_checkpoint_of_another_training_and_a_lost_best_are_named_and_not_used(recipe, tmp_path, monkeypatch):
    settings = ("finetune.validation.every=2", "finetune.checkpoint_every=2", "finetune.epochs=1.0")
    with cut_off(monkeypatch):
        for seed in (0, 1):
            with pytest.raises(KeyError, match="power cut"):
                open_run(recipe, tmp_path / f"run{seed}", (*settings, f"seed={seed}")).locked("finetune")
    works = [next((tmp_path / f"run{seed}").glob("finetune-*.partial")) for seed in (0, 1)]
    shutil.rmtree(works[0] / "checkpoints" / "step-00000004")
    shutil.copytree(works[1] / "checkpoints" / "step-00000004", works[0] / "checkpoints" / "step-00000004")
    shutil.rmtree(works[0] / "best" / "step-00000002")
    run = open_run(recipe, tmp_path / "run0", (*settings, "seed=0"))
    done = run.locked("finetune")
    told = [event["reason"] for event in run.run.events.read("damaged")]
    assert [reason.rsplit("/", 1)[-1] for reason in told] == [
        "step-00000004: is of another training; delete it",
        "step-00000002: is not there, or not whole; the best is chosen anew",
    ]
    assert [event["step"] for event in run.run.events.read("resumed")] == [2]
    assert done.metrics["best_step"] > 2
