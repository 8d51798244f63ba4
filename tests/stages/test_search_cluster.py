"""A search on the machines of a Ray cluster: what each worker gets, what is refused, and that it ends as a search on one machine does."""

import fcntl
import signal
import subprocess

import psutil
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
from tunesmith.base import MachineError, Run
from tunesmith.base.files import write_json
from tunesmith.stages.recipe import read_recipe
from tunesmith.stages.search.cluster import HELD, Room, facts, joined, room, unfit
from tunesmith.stages.search.worker import JOB


@pytest.mark.parametrize(
    ("machines", "workers", "given"),
    [
        ([{"CPU": 16.0}], 1, Room(16, 0)),
        ([{"CPU": 16.0}, {"CPU": 16.0}], 3, Room(8, 0)),
        ([{"CPU": 5.0}, {"CPU": 5.0}, {"CPU": 5.0}], 4, Room(2, 0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}, {}], 3, Room(2, 0)),
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 8.0}], 4, Room(8, 1)),
        ([{"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 1.0}], 2, Room(16, 1)),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}], 1, Room(8, 1)),
        ([{"CPU": 16.0}, {"CPU": 4.0, "GPU": 4.0}], 4, Room(1, 1)),
    ],
)
def test_workers_get_as_much_as_all_of_them_can_have_at_once(machines, workers, given):
    assert room(machines, workers) == given


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([{"CPU": 2.0}], "room for 2 workers, each with a core, not for 3"),
        ([{"CPU": 16.0, "GPU": 2.0}], "room for 2 workers, each with a core and a GPU, not for 3"),
        ([{}], "room for 0 workers"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(machines, said):
    with pytest.raises(MachineError, match=said):
        room(machines, 3)


def test_a_machine_without_the_folder_its_locks_the_model_or_the_versions_is_named(tmp_path, tiny_folder):
    recipe = read_recipe(write_recipe(tmp_path, tiny_folder))
    wanted = facts(recipe)
    assert "all machines have to share the run's folder" in unfit(tmp_path, wanted)
    (tmp_path / HELD).touch()
    assert "are not seen from other machines" in unfit(tmp_path, wanted)
    job = {"recipe": recipe.model_dump(mode="json")}
    with (tmp_path / HELD).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_json(tmp_path / JOB, job)
        assert not unfit(tmp_path, wanted)
        assert "torch is" in unfit(tmp_path, {**wanted, "torch": "1.0"})
        assert "model is" in unfit(tmp_path, {**wanted, "model": "another"})
        assert "what judges or teaches is" in unfit(tmp_path, {**wanted, "what judges or teaches": "others"})
        assert "absent.py: no such file" in unfit(tmp_path, wanted, [str(tmp_path / "absent.py")])
        write_json(tmp_path / JOB, {"recipe": {**job["recipe"], "model": str(tmp_path / "nowhere")}})
        assert "nowhere" in unfit(tmp_path, wanted)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port"])
def test_without_a_cluster_it_is_said_how_to_begin_one(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(MachineError, match="begin one by `ray start --head`"), joined(pytest.importorskip("ray")):
        pass


@pytest.fixture
def cluster():
    """Two machines with one core each, both of them this one."""
    from ray.cluster_utils import Cluster

    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    both.add_node(num_cpus=1)
    both.wait_for_nodes()
    yield both
    both.shutdown()


def workers() -> list[psutil.Process]:
    """Of searches."""
    found = (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])
    return [process for process in found if "tunesmith.stages.search.worker" in process.info["cmdline"]]


@pytest.mark.torture
def test_a_cluster_ends_as_one_machine_does_whatever_is_lost_of_it(cluster, tiny_folder, tmp_path):
    """Ctrl-C where the search was begun, which loses no step; then a machine dies, and a worker of the other one goes on with its trial."""
    recipe, run, longer = write_recipe(tmp_path, tiny_folder), Run(tmp_path / "r"), "finetune.epochs=10"

    def begun(more: int) -> subprocess.Popen:
        wanted, process = steps_of(run) + more, start(recipe, run.path, longer, "--ray", RAY_ADDRESS=cluster.address)
        assert until(lambda: steps_of(run) >= wanted, process), process.communicate()[1]
        return process

    interrupted = begun(6)
    assert len(workers()) == 2
    interrupted.send_signal(signal.SIGINT)
    told = interrupted.communicate(timeout=120)[1]
    assert interrupted.returncode == 130, told
    assert not workers(), "workers outlive the search"
    under_way = [trial for trial in trials(run) if any(True for _ in trial.run.events.read("step"))]
    assert under_way
    done = steps_of(run)

    last = begun(6)
    cluster.remove_node(next(node for node in cluster.worker_nodes), allow_graceful=False)
    told = last.communicate(timeout=240)[1]
    assert last.returncode == 0, told
    assert "a worker ended with" in told
    assert "a worker ended with" in next(run.events.read("worker_lost"))["reason"]
    assert done < sum(trial["steps"] for trial in results(run)["trials"])
    assert (
        steps_of(run) - sum(trial["steps"] for trial in results(run)["trials"]) <= 3
    )  # since the lost machine's checkpoint
    assert_nothing_was_done_twice(run)
    assert_same_trials(run, Run(tunesmith.search(recipe, longer, folder=tmp_path / "whole").path.parent))
