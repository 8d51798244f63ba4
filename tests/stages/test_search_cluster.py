"""A search on the machines of a Ray cluster: what each worker gets, what is refused, and that it ends as a search on one machine does."""

import fcntl
import os
import signal
import subprocess
import sys

import psutil
import pytest
from searches import assert_nothing_was_done_twice, assert_same_trials, start, steps_of, trials, until, write_recipe

import tunesmith
from tunesmith.base import MachineError, Run
from tunesmith.base.artifact import environment
from tunesmith.stages.search.cluster import HELD, Room, joined, room, unfit


@pytest.mark.parametrize(
    ("machines", "workers", "given"),
    [
        ([{"CPU": 16.0}], 1, Room(16, 0)),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 3, Room(8, 0)),
        ([{"CPU": 5.0}, {"CPU": 5.0}, {"CPU": 5.0}], 4, Room(2, 0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}, {}], 3, Room(2, 0)),
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 8.0}], 4, Room(8, 1)),
        ([{"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 1.0}], 2, Room(16, 1)),
    ],
)
def test_workers_get_as_much_as_all_of_them_can_have_at_once(machines, workers, given):
    assert room(machines, workers) == given


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([{"CPU": 2.0}], "3 workers need as many of the cluster's CPUs, of which there are 2"),
        ([{"CPU": 16.0, "GPU": 2.0}], "3 workers need as many of the cluster's GPUs, of which there are 2"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(machines, said):
    with pytest.raises(MachineError, match=said):
        room(machines, 3)


def test_a_machine_without_the_folder_its_locks_or_the_versions_is_named(tmp_path):
    assert "all machines have to share the run's folder" in unfit(tmp_path, environment())
    (tmp_path / HELD).touch()
    assert "are not seen from other machines" in unfit(tmp_path, environment())
    with (tmp_path / HELD).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not unfit(tmp_path, environment())
        assert "torch is" in unfit(tmp_path, {**environment(), "torch": "1.0"})
        assert not unfit(tmp_path, {**environment(), "python": sys.version.split()[0].rsplit(".", 1)[0] + ".99"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port"])
def test_without_a_cluster_it_is_said_how_to_begin_one(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(MachineError, match="begin one by `ray start --head`"), joined(pytest.importorskip("ray")):
        pass


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two machines with one core each, both of them this one."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    both.add_node(num_cpus=1)
    both.wait_for_nodes()
    yield both.address
    both.shutdown()


def workers() -> dict[int, psutil.Process]:
    """Workers of a search, by who began them."""
    found = (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])
    return {process.ppid(): process for process in found if "tunesmith.stages.search.worker" in process.info["cmdline"]}


@pytest.mark.torture
def test_a_cluster_ends_as_one_machine_does_whatever_dies_on_it(cluster, tiny_folder, tmp_path):
    """Ctrl-C where it was begun, then a machine's process and a worker killed; another takes the trials over, from their checkpoints."""
    recipe, run, longer = write_recipe(tmp_path, tiny_folder), Run(tmp_path / "r"), "finetune.epochs=10"

    def begun(more: int) -> subprocess.Popen:
        wanted, process = steps_of(run) + more, start(recipe, run.path, longer, "--ray", RAY_ADDRESS=cluster)
        assert until(lambda: steps_of(run) >= wanted, process), process.communicate()[1]
        return process

    interrupted = begun(6)
    interrupted.send_signal(signal.SIGINT)
    told = interrupted.communicate(timeout=120)[1]
    assert interrupted.returncode == 130, told
    assert until(lambda: not workers(), start_nothing(), 60), "workers outlive the search"
    assert all(trial.run.path.joinpath("events.jsonl").exists() for trial in trials(run))

    last = begun(6)
    assert until(lambda: len(workers()) == 2, last)
    (parent, one), _ = workers().items()
    os.kill(parent if parent != last.pid else one.pid, signal.SIGKILL)
    told = last.communicate(timeout=240)[1]
    assert last.returncode == 0, told
    assert "a worker ended with" in next(run.events.read("worker_lost"))["reason"]
    assert_nothing_was_done_twice(run)
    assert_same_trials(run, Run(tunesmith.search(recipe, longer, folder=tmp_path / "whole").path.parent))


def start_nothing() -> subprocess.Popen:
    """A process that does not end while something is waited for."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)"])
