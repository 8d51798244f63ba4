"""SIGINT and SIGTERM become one exception, at once or at the next safe point."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

AGAIN = 0.05
"""Seconds after which a signal is sent again that arrived where nothing can be raised."""


class Stop:
    """Whether someone asked the run to end; read it at points where stopping is safe."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived since the last look."""
        if self.signal is not None:
            arrived, self.signal = self.signal, None
            raise Interrupted(arrived)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this block SIGINT and SIGTERM raise Interrupted where they arrive, or a little later where nothing can be raised."""
    before, told = {number: signal.signal(number, _raise) for number in _SIGNALS}, sys.unraisablehook
    sys.unraisablehook = lambda lost: _again(lost.exc_value) if isinstance(lost.exc_value, Interrupted) else told(lost)
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, handler in before.items():
            signal.signal(number, handler)


def _again(lost: Interrupted) -> None:
    """Send the signal once more: Python drops what is raised while it lets an object go, or in a function that C called."""
    threading.Timer(AGAIN, os.kill, (os.getpid(), lost.exit_code - 128)).start()


@contextmanager
def deferred() -> Iterator[Stop]:
    """Within this block SIGINT and SIGTERM are only noted; the caller looks at the Stop between steps, and at its end it is looked at once more."""
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        stop.signal = number

    try:
        before = {number: signal.signal(number, note) for number in _SIGNALS}
    except ValueError:  # not the main thread: signals are somebody else's
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stop.check()
