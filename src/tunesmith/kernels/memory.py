"""Keeps memory steady from step to step: what is freed stays for the next step, and compiled products do not pile up."""

import ctypes
import gc
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from .arena import the_arena
from .mapped import every

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt(3)."""
LARGEST = 32 << 20
"""Blocks beyond this are mapped one by one whatever is asked for."""
PRODUCTS = 128
"""Matrix products, each of one shape, that oneDNN keeps compiled: a step's and some more. Each takes half a megabyte, and torch would keep 1,024."""


@cache
def keep_steady() -> None:
    """Set up the allocator and oneDNN's caches; to be called before the first product.

    Every step needs much the same sizes again, and touching fresh pages costs more than the work done on them: without this an SFT step on
    a CPU takes 15 % longer.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PRODUCTS))
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, -1), (TOP_PAD, 2 * LARGEST)):
            mallopt(option, value)


def give_back() -> None:
    """Hand what is not in use to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    arena = the_arena()
    if arena is not None:
        arena.give_back()
    for file in every:
        file.give_back()


class Peak:
    """The most memory that the process held since this was made."""

    STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        gc.collect()
        give_back()  # what earlier stages freed is not this one's
        with suppress(
            OSError
        ):  # a system without it, or one that forbids it: then the peak is that of the whole process
            self.RESET.write_text("5")  # see proc_pid_clear_refs(5)

    @property
    def megabytes(self) -> int:
        """Resident set at its largest; 0 where the system does not tell."""
        if not self.STATUS.exists():
            return 0
        line = next(line for line in self.STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
