"""What the command line says where the system refuses it something."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = "from tunesmith.cli import main; main()"


@pytest.mark.parametrize("command", ["report", "track"])
def test_commands_without_a_run_option_are_not_advised_to_use_it(tunesmith, tmp_path, monkeypatch, command):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "r/stages.json")

    for place in ("running.write_report", "tracking.hand_over"):
        monkeypatch.setattr(f"tunesmith.cli.{place}", refuse)
    code, _, error = tunesmith(command, "r")
    assert (code, "--run" in error) == (2, False)
    assert error.startswith("tunesmith: r/stages.json: no permission; ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--help", "standard output: cannot be written (No space left on device)"),
        ("finetuen", "No such command 'finetuen'"),
    ],
)
def test_standard_output_that_is_full_is_named_where_it_is_why_and_no_folder_is(tmp_path, command, told):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, command], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith(f"tunesmith: {told}")


def test_a_current_folder_that_was_deleted_is_named(tunesmith, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, error = tunesmith("--help")
    assert code == 2
    assert error.startswith("tunesmith: the current folder was deleted; ")


def test_doctor_says_all_there_is_to_say_where_torch_is_missing(tmp_path):
    code = f"""
import importlib.metadata, sys
known = importlib.metadata.version
def version(name):
    if name == "torch":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version, sys.modules["torch"] = version, None
{MAIN}"""
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    found = [line.split()[:2] for line in done.stdout.splitlines()]
    assert ["needed", "torch"] in found
    assert ["ok", "transformers"] in found
    assert "extra eval" in done.stdout
