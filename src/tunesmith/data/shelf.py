"""A shelf of byte strings in an unnamed file: what is too much for memory waits there, and only its places are kept."""

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
CHUNK = 1000
"""Rows that are worked on together."""


class Shelf:
    """Byte strings by number, eight bytes of memory each; the file vanishes with the process."""

    def __init__(self, folder: Path | None = None) -> None:
        """An empty shelf in `folder`, or where temporary files are."""
        self.folder = folder
        self._file = TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115  it lives as long as the shelf
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __del__(self) -> None:
        with suppress(
            OSError
        ):  # of a full disk, in the way of the error that told of it; nobody wants what is left to write
            self._file.close()

    def extend(self, items: Iterable[bytes]) -> None:
        """Put more behind the last."""
        end = self._ends[-1]
        for item in items:
            self._file.write(item)
            end += len(item)
            self._ends.append(end)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The byte strings of these numbers. They must not be put down and taken up in turns: each read flushes."""
        self._file.flush()
        handle, ends = self._file.fileno(), self._ends
        for number in numbers:
            yield os.pread(handle, ends[number + 1] - ends[number], ends[number])

    def lengths(self) -> np.ndarray:
        """int64 [N]: bytes of each."""
        return np.diff(np.array(self._ends))


def batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of CHUNK items, the last one shorter."""
    each = iter(items)
    while some := list(islice(each, CHUNK)):
        yield some


def chunks(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """An array in parts of CHUNK."""
    for start in range(0, len(numbers), CHUNK):
        yield numbers[start : start + CHUNK]
