"""A small search over trainings of a tiny model, and what its trials came to."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tunesmith.base import ModelError, Run
from tunesmith.base.files import read_json
from tunesmith.stages.search import trial as trial_stage
from tunesmith.stages.search.trial import Trial

SPACE = {
    "finetune.optimizer.learning_rate": {"low": 1e-3, "high": 5e-2, "log": True},
    "initialise.adapter.rank": [2, 4, 8],
    "initialise.adapter.alpha": {"values": [1, 2], "times": "initialise.adapter.rank"},
    "finetune.batch": [4, 8],
}


def write_recipe(folder: Path, model: Path) -> Path:
    """A search over some trainings of a tiny model, with dropout, whose checkpoints fall between the shares at which trials are scored."""
    colours = ["red", "green", "blue", "black"]
    lines = [{"prompt": f"Shade {number}?", "answer": colours[number % 4]} for number in range(56)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(model),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 8, "cleaners": []},
        "initialise": {"adapter": {"rank": 4, "alpha": 8, "dropout": 0.1}},
        "finetune": {"epochs": 2.0, "batch": 4, "checkpoint_every": 3, "optimizer": {"learning_rate": 0.01}},
        "search": {"trials": 3, "space": SPACE, "sampler": "random", "keep": 1},
        "evaluate": {
            "graders": [{"kind": "exact"}],
            "max_tokens": 4,
            "baselines": False,
            "gate": {"margin": None, "beat": []},
        },
        "deploy": {"ungated": True},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


def fail_once(monkeypatch) -> None:
    """The first trial that is to be concluded comes to nothing."""
    real, failed = trial_stage.conclude, []

    def conclude(begun, out):
        if failed:
            return real(begun, out)
        failed.append(out.path)
        raise ModelError("the loss is not finite")

    monkeypatch.setattr(trial_stage, "conclude", conclude)


def results(run: Run) -> dict:
    return read_json(run.artifact("search") / "search.json")


def trials(run: Run) -> list[Trial]:
    return [Trial(path.parent) for path in sorted(run.path.glob("trials/*/*/trial.json"))]


def learnt(folder: Path) -> dict[str, str]:
    """sha256 of the weights below an artifact."""
    files = read_json(folder / "manifest.json")["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def start(recipe: Path, folder: Path, *settings: str, **environment: str) -> subprocess.Popen:
    """`tunesmith search` by two workers, in a process group of its own."""
    command = [
        sys.executable,
        "-c",
        "from tunesmith.cli import main; main()",
        "search",
        str(recipe),
        "--run",
        str(folder),
    ]
    return subprocess.Popen(
        [*command, "--workers", "2", *settings], env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def until(wanted, process: subprocess.Popen, seconds: float = 120) -> bool:
    """Wait for something; whether it came before the process ended."""
    for _ in range(int(100 * seconds)):
        if wanted():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise TimeoutError(process.args)


def steps_of(run: Run) -> int:
    return sum(1 for trial in trials(run) for _ in trial.run.events.read("step"))


def assert_nothing_was_done_twice(run: Run) -> None:
    """Each part of each trial was finished once, and what was repeated of it lies between two checkpoints for each time that it was begun again."""
    for trial in trials(run):
        events = list(trial.run.events.read())
        done = [event["stage"] for event in events if event["event"] == "done"]
        assert len(done) == len(set(done))
        steps = [event["step"] for event in events if event["event"] == "step"]
        again = sum(event["event"] == "started" for event in events) - len(done)
        assert len(steps) - len(set(steps)) <= 3 * again


def assert_same_trials(one: Run, other: Run) -> None:
    """Settings, scores and weights alike."""
    assert results(one)["trials"][0].keys() == results(other)["trials"][0].keys()
    kept = ("number", "settings", "scores", "state", "steps", "tokens")
    assert [[trial[name] for name in kept] for trial in results(one)["trials"]] == [
        [trial[name] for name in kept] for trial in results(other)["trials"]
    ]
    assert learnt(one.artifact("search").path) == learnt(other.artifact("search").path)
