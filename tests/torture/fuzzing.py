"""A small coverage-guided fuzzer in the manner of AFL (Zalewski, 2013): what reaches lines in a new order is kept and changed further.

It follows lines by `sys.settrace`, since no fuzzer that instruments CPython 3.11 could be relied on to build; a few hundred inputs a second.
"""

import random
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tunesmith.base import TunesmithError

OURS = str(Path(sys.modules["tunesmith"].__file__ or "").parent)
SLOWEST = 2.0
"""Seconds of processor time that one input of a few kilobytes may take, tracing included."""
MOST_MEMORY = 512 * 2**20
"""Bytes by which the process may grow over one input."""
NO_WORDS = "an error that says nothing"
WORDS = [
    *(b'{}[]":,\\\n\r\t \x00\xff'[place : place + 1] for place in range(14)), b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"\\ud800", b"\\u0000", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"[" * 40, b'{"a":' * 40, b"<|im_end|>", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00" * 8, b"&a [*a]", b"*a", b"!!binary x", b"? ", b"- ", b": ", b"{{ 1 }}",
]  # fmt: skip


class Hang(BaseException):
    """An input took too long; no handler of errors takes it for one."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang after so much processor time."""

    def ring(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def most_held(anew: bool = False) -> int:
    """Bytes of memory that this process held at once: ever, or since it was last asked with `anew`."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def mutated(draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with some bytes changed, or spliced with another."""
    found = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        at = draw.randrange(len(found) + 1)
        end = min(len(found), at + draw.choice((1, 1, 2, 4, 16, 64)))
        match draw.randrange(7):
            case 0:
                found[at:end] = b""
            case 1:
                found[at:at] = draw.choice(WORDS)
            case 2:
                found[at:end] = draw.choice(WORDS)
            case 3:
                found[at:end] = draw.randbytes(end - at)
            case 4:
                found[at:at] = found[at:end] * draw.choice((1, 2, 9))
            case 5:
                other = draw.choice(seeds)
                start = draw.randrange(len(other) + 1)
                found[at:end] = other[start : start + draw.choice((4, 16, 64, 256))]
            case 6 if at < len(found):
                found[at] ^= 1 << draw.randrange(8)
    return bytes(found)


class Coverage:
    """Which lines of ours follow which, over all inputs so far."""

    def __init__(self) -> None:
        self.known: set[tuple[int, int, int]] = set()
        self._now: set[tuple[int, int, int]] = set()
        self._last = 0

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(OURS) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        self._now.add((id(frame.f_code), self._last, frame.f_lineno))
        self._last = frame.f_lineno
        return self._line

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow what happens inside."""
        self._now, self._last = set(), 0
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    @property
    def new(self) -> bool:
        """Whether the last input did what none did before."""
        fresh = not self._now <= self.known
        self.known |= self._now
        return fresh


def fuzz(target: Callable[[bytes], object], seeds: Sequence[bytes], count: int, seed: int) -> tuple[list[str], int]:
    """What broke a parser, and how many line pairs were reached. An error of ours is an answer; any other, a hang or much memory is not.

    Raises:
        AssertionError: a seed itself is not taken, so that nothing would be tested.
    """
    draw, coverage = random.Random(seed), Coverage()
    pool, broken = list(seeds), list[str]()
    for given in seeds:
        target(given)
    for _ in range(count):
        given = mutated(draw, pool)
        memory = most_held(anew=True)
        try:
            with coverage.watching(), limited(SLOWEST):
                target(given)
        except TunesmithError as error:
            if not str(error).strip():
                broken.append(f"{NO_WORDS}: {given!r}")
        except (Exception, Hang) as error:  # noqa: BLE001  the point of it
            broken.append(f"{type(error).__name__}: {error} of {given[:300]!r}")
        if (grown := most_held() - memory) > MOST_MEMORY:
            broken.append(f"{grown >> 20} MiB for {given[:300]!r}")
        if coverage.new and len(given) < 20_000:
            pool.append(given)
    return broken, len(coverage.known)


def said(broken: Sequence[str]) -> bool:
    """Whether all that broke a parser raised an error at least: a hang, much memory and an error without words say nothing."""
    return not any(one.startswith(("Hang:", NO_WORDS)) or " MiB for " in one[:20] for one in broken)


def main() -> None:
    """Fuzz the reader of tables in a process of its own, which a library written in another language may take down."""
    name, folder, count, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    path = folder / f"rows.{name}"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for record in open_source(str(path)):
            json.dumps(record.value, ensure_ascii=False).encode()

    print(json.dumps(fuzz(read, [(folder / f"seed.{name}").read_bytes()], count, seed)))


if __name__ == "__main__":
    import json

    from tunesmith.data.sources import open_source

    main()
