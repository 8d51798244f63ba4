import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.base import Artifact, ArtifactError, Interrupted, MachineError, Output, Run, Spec, Stage
from tunesmith.base.signals import deferred, interruptible


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


HOLD = """
import sys, time
from pathlib import Path
from tunesmith.base import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_at_once_and_a_killed_ones_lock_is_taken_over(tmp_path):
    process = holder(tmp_path / "run")
    try:
        start = time.monotonic()
        with (
            pytest.raises(ArtifactError, match=f"process {process.pid} on .* is working here"),
            Run(tmp_path / "run").lock(),
        ):
            pass
        assert time.monotonic() - start < 2
    finally:
        process.kill()
        process.wait()
    with Run(tmp_path / "run").lock():
        assert f"process {os.getpid()} " in (tmp_path / "run" / ".lock").read_text()


def test_a_second_process_is_refused_before_torch_is_loaded(tmp_path):
    process = holder(tmp_path / "run")
    code = "import sys; from tunesmith.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, "finetune", "recipe.yaml", "--run", tmp_path / "run"],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        process.kill()
        process.wait()
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert f"process {process.pid} on {socket.gethostname()} is working here" in done.stderr


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write here") as caught, Run(tmp_path / "file" / "run").lock():
        pass
    assert "\n" not in str(caught.value)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """As some network file systems are; none can be mounted here."""

    def without(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(ArtifactError, match="locks no files"), Run(tmp_path / "run").lock():
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
class TestSignals:
    def test_raise_at_once_where_asked(self, number, code):
        before = signal.getsignal(number)

        def wait():
            with interruptible():
                os.kill(os.getpid(), number)
                time.sleep(5)

        with pytest.raises(Interrupted) as caught:
            wait()
        assert caught.value.exit_code == code
        assert signal.getsignal(number) is before

    def test_pass_by_who_catches_every_exception(self, number, code):
        def wait():
            with interruptible():
                try:
                    os.kill(os.getpid(), number)
                    time.sleep(5)
                except Exception:  # noqa: BLE001  as libraries do
                    return

        with pytest.raises(Interrupted):
            wait()

    def test_come_again_where_nothing_can_be_raised(self, number, code):
        class Dropped:
            def __del__(self) -> None:
                os.kill(os.getpid(), number)

        def wait():
            with interruptible():
                dropped = Dropped()
                del dropped
                time.sleep(5)

        begun = time.monotonic()
        with pytest.raises(Interrupted):
            wait()
        assert time.monotonic() - begun < 4

    def test_are_looked_at_once_more_at_the_end(self, number, code):
        def last():
            with deferred():
                os.kill(os.getpid(), number)
                time.sleep(0.01)

        with pytest.raises(Interrupted) as caught:
            last()
        assert caught.value.exit_code == code

    def test_or_wait_for_a_safe_point(self, number, code):
        before = signal.getsignal(number)
        with deferred() as stop:
            stop.check()
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            safe = "reached"
            with pytest.raises(Interrupted) as caught:
                stop.check()
        assert safe == "reached"
        assert caught.value.exit_code == code
        assert signal.getsignal(number) is before


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
