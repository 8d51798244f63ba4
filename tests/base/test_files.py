"""A full disk is one line with figures, before anything is written where the system tells it, and nothing half written stays."""

import errno
import os
from pathlib import Path

import pytest

from tunesmith.base import Events, MachineError
from tunesmith.base.files import room, write_atomic


def test_what_would_not_fit_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(
            MachineError,
            match=r"new/weights: the disk is full: 9,\d{3},\S+ bytes are needed and [\d,]+ free; free some space",
        ),
        room(tmp_path / "new" / "weights", 9 * 10**18),
    ):
        raise AssertionError("it was begun")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: no room (os error 28)"),
    ],
)
def test_whoever_finds_the_disk_full_it_is_said_alike(tmp_path, error):
    said = r"part: the disk is full: 12 bytes are needed and [\d,]+ free"
    with pytest.raises(MachineError, match=said) as caught, room(tmp_path / "part", 12):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass(tmp_path):
    with pytest.raises(OSError, match="os error 2"), room(tmp_path):
        raise OSError("no such file (os error 2)")


def test_half_a_file_does_not_stay_on_a_full_disk(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(tmp_path / "a.json", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"a\.json: the disk is full: 5 bytes are needed"):
        write_atomic(tmp_path / "a.json", "after")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "before"}


def test_an_event_that_does_not_fit_is_said_too(tmp_path, monkeypatch):
    def full(path: Path, *given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(MachineError, match=r"events\.jsonl: the disk is full: \d+ bytes are needed"):
        Events(tmp_path / "events.jsonl").write("step", step=1)
