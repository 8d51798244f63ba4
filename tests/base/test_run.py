import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable

import pytest

from tunesmith.base import Artifact, ArtifactError, Interrupted, MachineError, Output, Run, Spec, Stage


class Cook(Spec):
    """How to cook."""

    salt: int = 1
    """Pinches."""


class Kitchen:
    """A stage that counts how often it really ran and can be made to fail."""

    def __init__(self) -> None:
        self.ran = 0
        self.error: BaseException | None = None
        self.found: list[str] = []
        self.at_end: Callable[[], None] = lambda: None

    def __call__(self, spec: Cook, *parents: Artifact, out: Output, seed: int = 0) -> None:
        self.ran += 1
        self.found = sorted(path.name for path in out.path.iterdir())
        (out / "soup.txt").write_text(f"salt {spec.salt} seed {seed} {[parent.id for parent in parents]}")
        out.metrics["salt"] = spec.salt
        out.events.write("stirred")
        self.at_end()
        if self.error:
            raise self.error


@pytest.fixture
def kitchen():
    return Kitchen()


@pytest.fixture
def run(tmp_path):
    found = Run(tmp_path / "run")
    with found.lock():
        yield found


def names(run):
    return [event["event"] for event in run.events.read()]


def test_the_same_inputs_are_computed_once(run, kitchen):
    stage = Stage("cook", 1, kitchen)
    first = run.once(stage, Cook())
    assert run.once(stage, Cook()).path == first.path
    assert Run(run.path).once(stage, Cook()).path == first.path  # another process
    assert kitchen.ran == 1
    assert names(run) == ["started", "stirred", "done", "cached"]
    assert run.states["cook"]["state"] == "done"
    assert run.artifact("cook").metrics == {"salt": 1}
    assert first.manifest["spec"] == {"salt": 1}
    assert first.manifest["environment"]["torch"]
    assert {event["artifact"] for event in run.events.read("stirred")} == {first.path.name}


def test_whatever_goes_in_is_part_of_the_key(run, kitchen, tmp_path):
    menu = tmp_path / "menu.txt"
    menu.write_text("a")
    stage = Stage("cook", 1, kitchen)
    other = run.once(Stage("parent", 1, Kitchen()), Cook())
    third = run.once(Stage("parent", 1, Kitchen()), Cook(salt=9))
    made = [
        run.once(stage, Cook()),
        run.once(stage, Cook(salt=2)),
        run.once(stage, Cook(), seed=1),
        run.once(stage, Cook(), other),
        run.once(stage, Cook(), third),
        run.once(stage, Cook(), inputs=(menu,)),
        run.once(Stage("cook", 2, kitchen), Cook()),
    ]
    menu.write_text("b")
    made.append(run.once(stage, Cook(), inputs=(menu,)))
    assert len({artifact.path for artifact in made}) == kitchen.ran == 8
    assert made[3].manifest["parents"] == [{"stage": "parent", "folder": other.path.name, "id": other.id}]
    assert Run(run.path).artifact("cook").path == made[-1].path


def test_a_failed_stage_leaves_the_earlier_artifacts_alone(run, kitchen):
    stage = Stage("cook", 1, kitchen)
    first = run.once(stage, Cook())
    kitchen.error = ValueError("burnt")
    with pytest.raises(ValueError, match="burnt"):
        run.once(stage, Cook(salt=2))
    assert run.states["cook"]["state"] == "failed"
    assert run.states["cook"]["error"] == "burnt"
    assert Artifact.open(first.path).id == first.id
    with pytest.raises(ArtifactError, match="stage 'cook' is failed"):
        run.artifact("cook")
    kitchen.error = None
    run.once(stage, Cook(salt=2))
    assert kitchen.found == ["soup.txt"]  # what the failed attempt left was there to go on from
    assert run.states["cook"]["state"] == "done"
    assert not list(run.path.glob("*.partial"))


def test_what_was_finished_last_stands_until_something_else_is(run, kitchen):
    stage, seen = Stage("cook", 1, kitchen), []
    first = run.once(stage, Cook())
    kitchen.error, kitchen.at_end = ValueError("burnt"), lambda: seen.append(run.last("cook").path)
    for _ in range(2):
        with pytest.raises(ValueError, match="burnt"):
            run.once(stage, Cook(salt=2))
        run.interrupted("cook")
        assert run.last("cook").path == first.path
    assert seen == [first.path] * 2  # while another was under way
    kitchen.error, kitchen.at_end = None, lambda: None
    second = run.once(stage, Cook(salt=2))
    assert (run.last("cook").path, "done" in run.states["cook"]) == (second.path, False)
    Run(run.path).once(stage, Cook())  # another process
    assert (run.last("cook").path, kitchen.ran) == (first.path, 4)  # gone back to, not made anew
    with pytest.raises(ArtifactError, match="stage 'bake' is not started"):
        run.last("bake")


@pytest.mark.parametrize("error", [Interrupted(signal.SIGTERM), KeyboardInterrupt()])
def test_an_interrupted_stage_says_so(run, kitchen, error):
    kitchen.error = error
    with pytest.raises(type(error)):
        run.once(Stage("cook", 1, kitchen), Cook())
    assert run.states["cook"]["state"] == names(run)[-1] == "interrupted"


def test_what_a_full_disk_stops_is_said_even_if_it_cannot_be_noted(run, kitchen, monkeypatch):
    def full(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kitchen.error = OSError(errno.ENOSPC, "No space left on device")
    kitchen.at_end = lambda: monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        MachineError, match=r"cook-\w+\.partial: the disk is full: more bytes are needed than the [\d,]+ free"
    ):
        run.once(Stage("cook", 1, kitchen), Cook())
    monkeypatch.undo()
    kitchen.error, kitchen.at_end = None, lambda: None
    run.once(Stage("cook", 1, kitchen), Cook())
    assert run.states["cook"]["state"] == "done"


def test_files_that_a_kill_left_half_written_are_gone_when_a_stage_goes_on(run, kitchen):
    kitchen.error = ValueError("stopped")
    with pytest.raises(ValueError, match="stopped"):
        run.once(Stage("cook", 1, kitchen), Cook())
    work = next(run.path.glob("*.partial"))
    for name in (".tmpAb12Cd", ".soup.json.77.tmp", ".kept"):
        (work / name).write_text("half")
    kitchen.error = None
    made = run.once(Stage("cook", 1, kitchen), Cook())
    assert sorted(path.name for path in made.path.iterdir()) == [".kept", "manifest.json", "soup.txt"]


def test_the_time_of_a_stage_is_that_of_all_its_attempts(run, kitchen):
    stage = Stage("cook", 1, kitchen)
    kitchen.at_end, kitchen.error = lambda: time.sleep(0.3), ValueError("burnt")
    for _ in range(2):
        with pytest.raises(ValueError, match="burnt"):
            run.once(stage, Cook())
    kitchen.at_end, kitchen.error = lambda: None, None
    assert 0.6 <= run.once(stage, Cook()).manifest["seconds"] < 5
    assert run.once(stage, Cook(salt=9)).manifest["seconds"] < 0.6


def test_an_interrupt_before_a_stage_begins_its_work_is_noted(run, kitchen):
    run.once(Stage("cook", 1, kitchen), Cook())
    for name in ("cook", "serve"):
        run.interrupted(name)
    assert {name: state["state"] for name, state in run.states.items()} == {"cook": "done", "serve": "interrupted"}


@pytest.mark.parametrize("harm", ["cut", "flip", "delete", "manifest"])
def test_a_damaged_artifact_is_computed_again(run, kitchen, harm):
    stage = Stage("cook", 1, kitchen)
    soup = run.once(stage, Cook()) / "soup.txt"
    sound = soup.read_bytes()
    if harm == "cut":
        soup.write_bytes(sound[:-3])
    elif harm == "flip":
        soup.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    elif harm == "delete":
        soup.unlink()
    else:
        (soup.parent / "manifest.json").write_text("[]")
    again = Run(run.path)
    with pytest.raises(ArtifactError):
        again.artifact("cook")
    assert again.once(stage, Cook()) / "soup.txt" == soup
    assert soup.read_bytes() == sound
    assert kitchen.ran == 2
    assert "damaged" in names(run)


def test_a_stage_that_is_not_there(run):
    with pytest.raises(ArtifactError, match="'cook' is not started"):
        run.artifact("cook")


def test_an_artifact_under_the_name_of_another_is_made_anew(run, kitchen):
    stage = Stage("cook", 1, kitchen)
    salty, plain = run.once(stage, Cook(salt=9)), run.once(stage, Cook())
    shutil.rmtree(plain.path)
    shutil.copytree(salty.path, plain.path)
    again = Run(run.path)
    with pytest.raises(ArtifactError, match=f"holds what was made as {salty.path.name}"):
        again.open(plain.path.name)
    assert again.once(stage, Cook()).metrics == {"salt": 1}
    assert "damaged" in names(run)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "[]", '{"cook": 3}', '{"cook": {}}'])
def test_damaged_stages_are_named_and_found_again(run, kitchen, text):
    stage = Stage("cook", 1, kitchen)
    made = run.once(stage, Cook())
    (run.path / "stages.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"stages\.json: is damaged; delete it"):
        Run(run.path).artifact("cook")
    (run.path / "stages.json").unlink()
    assert Run(run.path).once(stage, Cook()).path == made.path
    assert kitchen.ran == 1


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/b", ".."])
def test_a_run_that_points_out_of_its_folder_is_refused(run, name):
    run.path.mkdir(exist_ok=True)
    (run.path / "stages.json").write_text(json.dumps({"cook": {"state": "done", "artifact": name}}))
    with pytest.raises(ArtifactError):
        run.artifact("cook")
