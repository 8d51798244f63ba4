"""A search whose workers are killed ends as one that is left alone: nothing is lost, and nothing is done twice."""

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from searches import (
    assert_nothing_was_done_twice,
    assert_same_trials,
    results,
    start,
    steps_of,
    trials,
    until,
    write_recipe,
)

import tunesmith
from tunesmith.base import Run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("search"), tiny_folder)


def workers_of(process: subprocess.Popen) -> list[int]:
    """The workers that a search has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = [int(number) for number in found.read_text().split()] if found.exists() else []
    return [child for child in children if b"search.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_two_workers_of_whom_one_is_killed_end_as_one_process_that_is_not(recipe, tmp_path):
    """The other one takes the trial over, from its checkpoint."""
    run = Run(tmp_path / "r")
    process = start(recipe, run.path)
    assert until(lambda: steps_of(run) >= 6, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    told = process.communicate(timeout=240)
    assert process.returncode == 0, told[1]
    assert "a worker ended with -9" in next(run.events.read("worker_lost"))["reason"]
    for trial in trials(run):
        events = list(trial.run.events.read())
        begun = [place for place, event in enumerate(events) if event["event"] == "started"]
        for one, other in itertools.pairwise(begun):  # a part that a worker left, and where another took it up
            left = events[one + 1 : other]
            if all(event["event"] != "done" for event in left) and sum(event["event"] == "step" for event in left) > 3:
                assert any(event["event"] == "resumed" for event in events[other:])
    assert_nothing_was_done_twice(run)
    assert_same_trials(run, Run(tunesmith.search(recipe, folder=tmp_path / "whole").path.parent))
    assert [line.split()[0] for line in told[1].splitlines() if " stopped " in line or " winner " in line]


@pytest.mark.torture
def test_two_workers_killed_at_random_ten_times_lose_and_repeat_nothing(recipe, tmp_path):
    """Worker, or the search itself, after which its workers end by themselves; by the signal that cannot be caught, or by Ctrl-C."""
    draw, run, whole, longer = np.random.default_rng(0), Run(tmp_path / "r"), tmp_path / "whole", "finetune.epochs=30"
    for kill in range(10):
        wanted = steps_of(run) + int(draw.integers(1, 12))
        process = start(recipe, run.path, longer)
        try:
            assert until(lambda wanted=wanted: steps_of(run) >= wanted, process), f"nothing was left for kill {kill}"
            victims = [process.pid, *workers_of(process)]
            os.kill(int(draw.choice(victims)), signal.SIGKILL if kill % 3 else signal.SIGINT)
            time.sleep(float(draw.uniform(0, 0.3)))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = start(recipe, run.path, longer)
    told = last.communicate(timeout=240)
    assert last.returncode == 0, told[1]
    tunesmith.search(recipe, longer, folder=whole)
    assert_nothing_was_done_twice(run)
    assert_same_trials(run, Run(whole))
    repeated = steps_of(run) - sum(trial["steps"] for trial in results(run)["trials"])
    assert repeated <= 10 * 2 * 3  # two workers, three steps between checkpoints
