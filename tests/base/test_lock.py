"""A run's folder is one process's: another is refused at once and told of whom, and a dead one's lock is taken over."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.base import ArtifactError, BusyError, Run

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
            pytest.raises(BusyError, match=f"process {process.pid} on .* is working here"),
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


@pytest.mark.parametrize("name", [".lock", "events.jsonl", "prepare-0123456789ab.partial"])
def test_a_run_folder_that_holds_a_link_is_refused_and_nothing_is_written_through_it(tmp_path, name):
    (tmp_path / "run").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / "run" / name).symlink_to(elsewhere)
    with pytest.raises(ArtifactError, match=rf"{name}: is a link.*delete it"), Run(tmp_path / "run").lock():
        pass
    assert elsewhere.read_text() == "kept"
