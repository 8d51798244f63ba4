"""What a GGUF file says of itself, checked before anything else reads it: counts and sizes that fit into the file (GGUF specification, version 3)."""

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

from tunesmith.base import ModelError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by the number of its type."""
TEXT, LIST = 8, 9
LONGEST_NAME, MOST_DIMENSIONS, DEEPEST = 65_535, 4, 4
ALIGNMENT = b"general.alignment"


def check_header(path: Path) -> None:
    """Refuse a file whose counts, texts or tensors do not fit into it, which programs that believe it would take memory for.

    Raises:
        ModelError: says what is wrong.
    """
    with path.open("rb") as file:
        try:
            _Header(file, path.stat().st_size).check()
        except (ValueError, struct.error) as error:
            raise ModelError(f"{path}: not a GGUF model that can be trained: {error}; fetch it again") from None


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def check(self) -> None:
        """Go through all that stands before the tensors' data, and ask where each of them ends."""
        if self.file.read(4) != b"GGUF":
            raise ValueError("it does not begin as one")
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; there are 2 and 3")
        tensors, fields = self._number("<Q"), self._number("<Q")
        if tensors > self.size // 24 or fields > self.size // 13:  # the least that one of each takes
            raise ValueError(f"{tensors:,} tensors and {fields:,} fields do not fit into its {self.size:,} bytes")
        alignment = 32
        for _ in range(fields):
            name, kind = self._text(), self._number("<I")
            if name == ALIGNMENT and kind == 4:
                alignment = self._number("<I")
                continue
            self._skip(kind, 0)
        if alignment < 1 or alignment & (alignment - 1) or alignment > 2**16:
            raise ValueError(f"alignment {alignment} is no power of two")
        ends = [self._tensor() for _ in range(tensors)]
        start = -(-self.file.tell() // alignment) * alignment
        if any(start + end > self.size for end in ends):
            raise ValueError("a tensor ends behind the file; it is cut short")

    def _tensor(self) -> int:
        """Where a tensor's data ends at the least, from the first byte of data on."""
        self._text()
        count = self._number("<I")
        if count > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {count:,} dimensions")
        shape = [self._number("<Q") for _ in range(count)]
        self._number("<I")
        return self._number("<Q") + prod(shape) // 8  # no type takes less than a bit for a weight

    def _skip(self, kind: int, depth: int) -> None:
        if kind in SIZES:
            self._pass(SIZES[kind])
        elif kind == TEXT:
            self._pass(self._number("<Q"))
        elif kind == LIST and depth < DEEPEST:
            inner, count = self._number("<I"), self._number("<Q")
            if count > self.size:
                raise ValueError(f"a list of {count:,} values does not fit into its {self.size:,} bytes")
            if inner in SIZES:
                self._pass(count * SIZES[inner])
                return
            for _ in range(count):
                self._skip(inner, depth + 1)
        else:
            raise ValueError(f"a value of unknown type {kind}")

    def _text(self) -> bytes:
        size = self._number("<Q")
        if size > LONGEST_NAME:
            raise ValueError(f"a name of {size:,} bytes")
        return self.file.read(size)

    def _number(self, form: str) -> int:
        found: int = struct.unpack(form, self.file.read(struct.calcsize(form)))[0]
        return found

    def _pass(self, count: int) -> None:
        if self.file.tell() + count > self.size:
            raise ValueError("a value ends behind the file; it is cut short")
        self.file.seek(count, 1)
