"""Room for what a forward pass keeps for its backward: one mapping, filled from its start at every step.

Batches differ in length, so blocks that are freed after one step do not fit the next, and an allocator's memory grows by a third beyond what is ever in
use. Here the sum of what one pass keeps is all there is, in huge pages where the system has them.
"""

import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

import psutil
import torch
from torch import Tensor

ALIGNED = 128
NORESERVE = 0x4000
"""mmap(2): addresses only; a page takes memory when it is first written."""


class Arena:
    """Serves one pass at a time: whoever keeps a tensor of it keeps it busy."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.map.madvise(mmap.MADV_HUGEPAGE)
        self._user: weakref.ref[memoryview] | None = None
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a tensor of the last pass still lives."""
        return self._user is not None and self._user() is not None

    def open(self) -> "Filling | None":
        """A new pass; None while tensors of the last one live."""
        with self._lock:
            if self.busy:
                return None
            view = memoryview(self.map)
            self._user = weakref.ref(view)
            return Filling(view)

    def give_back(self) -> None:
        """Hand its pages to the system."""
        with self._lock:
            if not self.busy:
                self.map.madvise(mmap.MADV_DONTNEED)


class Filling:
    """A pass under way."""

    device = "cpu"

    def __init__(self, view: memoryview) -> None:
        self.view, self.size = view, len(view)
        self.used = self.most = 0

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor | None:
        """A matrix, not initialised; None if there is no room left."""
        start, count = self.used, rows * columns
        size = count * dtype.itemsize
        if start + size > self.size or not size:
            return None
        self.used = start + -(-size // ALIGNED) * ALIGNED
        self.most = max(self.most, self.used)
        return self._at(start, count, dtype).view(rows, columns)

    def _at(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(self.view, dtype=dtype, count=count, offset=start)

    @contextmanager
    def again(self) -> Iterator[None]:
        """What is taken within this block is free again behind it; its tensors stay as they are until somebody takes that room."""
        before = self.used
        try:
            yield
        finally:
            self.used = before


class Rehearsal(Filling):
    """Passes without numbers: `most` is the room, in bytes, that real ones take."""

    device = "meta"

    def __init__(self) -> None:
        self.size = 1 << 50
        self.used = self.most = 0
        self.room = torch.empty(self.size, dtype=torch.uint8, device="meta")

    def _at(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        return self.room[start : start + count * dtype.itemsize].view(dtype).data


@cache
def the_arena() -> Arena | None:
    """The process's; None where the system does not hand out addresses without memory."""
    try:
        return Arena(psutil.virtual_memory().total)
    except (OSError, ValueError):
        return None


_filling: ContextVar[Filling | None] = ContextVar("filling", default=None)
_rehearsal: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)


@contextmanager
def rehearsing(rehearsal: Rehearsal) -> Iterator[None]:
    """Within this block passes are rehearsed."""
    token = _rehearsal.set(rehearsal)
    try:
        yield
    finally:
        _rehearsal.reset(token)


@contextmanager
def kept_together() -> Iterator[None]:
    """Within this block, what `kept` hands out lies in the arena, unless another pass's tensors live there."""
    token = _filling.set(_opened() if torch.is_grad_enabled() else None)
    try:
        yield
    finally:
        _filling.reset(token)


def _opened() -> Filling | None:
    rehearsal, arena = _rehearsal.get(), the_arena()
    if rehearsal is not None:
        rehearsal.used = 0
        return rehearsal
    return arena.open() if arena is not None else None


def reusing() -> Callable[[], AbstractContextManager[None]]:
    """Makes blocks: what the present pass takes within one is handed out again after it."""
    filling = _filling.get()
    return nullcontext if filling is None else filling.again


def kept(like: Tensor, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """A matrix for what the backward will read, not initialised, beside `like`."""
    filling = _filling.get()
    fits = filling is not None and like.device.type == filling.device
    found = filling.take(rows, columns, dtype or like.dtype) if filling is not None and fits else None
    return found if found is not None else like.new_empty(rows, columns, dtype=dtype or like.dtype)
