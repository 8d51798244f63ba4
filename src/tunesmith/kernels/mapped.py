"""Tensors in a file that is mapped: memory holds what is in use of them, and the system writes the rest away."""

import mmap
import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.base import MachineError

every: "weakref.WeakSet[MappedFile]" = weakref.WeakSet()
"""Those there are."""


class MappedFile:
    """Room for tensors in a file without a name, which is gone when the process is."""

    def __init__(self, size: int, folder: Path) -> None:
        """Take `size` bytes of the disk that holds `folder`.

        Raises:
            MachineError: the disk has no room for it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would end the process
            except OSError as error:
                raise MachineError(
                    f"{folder}: cannot keep {size / 1e9:.1f} GB there ({error.strerror}); set TUNESMITH_CACHE to a folder with room"
                ) from None
            self.map = mmap.mmap(file.fileno(), size)
        self.used = 0
        every.add(self)

    @staticmethod
    def room(like: Tensor) -> int:
        """Bytes that such a tensor takes: whole pages, so that it can be let go alone."""
        return -(-like.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE

    def take(self, like: Tensor) -> Tensor:
        """A tensor of this shape and dtype, zero."""
        start, self.used = self.used, self.used + self.room(like)
        return torch.frombuffer(self.map, dtype=like.dtype, count=like.numel(), offset=start).view(like.shape)

    def release(self, *tensors: Tensor) -> None:
        """Let go of the memory of some of its tensors; the file keeps what they hold."""
        base = torch.frombuffer(self.map, dtype=torch.uint8).data_ptr()
        for tensor in tensors:
            self.map.madvise(mmap.MADV_DONTNEED, tensor.data_ptr() - base, self.room(tensor))

    def give_back(self) -> None:
        """Let go of the memory of all."""
        self.map.madvise(mmap.MADV_DONTNEED)
