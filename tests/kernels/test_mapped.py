"""Tensors in a mapped file outlive the memory that held them, and a disk without room says so at once."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from tunesmith.base import MachineError
from tunesmith.kernels.mapped import MappedFile

MEGABYTES = 64


def mapped_megabytes() -> int:
    """Pages of files that this process holds."""
    return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def test_what_is_let_go_is_no_longer_in_memory_and_still_there(tmp_path):
    like = torch.empty(MEGABYTES << 17)
    file = MappedFile(2 * MappedFile.room(like), tmp_path)
    first, second = file.take(like), file.take(like)
    assert not first.any()
    before = mapped_megabytes()
    first.fill_(1)
    second.fill_(2)
    assert mapped_megabytes() - before > 0.4 * MEGABYTES
    file.release(first)
    file.give_back()
    assert mapped_megabytes() - before < 0.1 * MEGABYTES
    assert (float(first.mean()), float(second.mean())) == (1, 2)
    assert list(tmp_path.iterdir()) == []  # nothing to clean up, whatever ends the process


def test_tensors_begin_on_pages_of_their_own(tmp_path):
    file = MappedFile(4 * mmap.PAGESIZE, tmp_path)
    starts = [file.take(torch.empty(3)).data_ptr() for _ in range(4)]
    assert all(start % mmap.PAGESIZE == 0 for start in starts)
    assert len(set(starts)) == 4


def test_a_disk_without_room_is_refused_in_one_line(tmp_path):
    with pytest.raises(MachineError, match=r"cannot keep .* GB there"):
        MappedFile(1 << 60, tmp_path)
