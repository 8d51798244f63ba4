"""Signals: where it is asked for they end a block at once, elsewhere at the next place where all is kept."""

import os
import signal
import time

import pytest

from tunesmith.base import Interrupted
from tunesmith.base.signals import deferred, interruptible


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
class TestSignals:
    def test_raise_at_once_where_asked(self, number, code):
        before = signal.getsignal(number)

        def wait():
            with interruptible():
                os.kill(os.getpid(), number)
                time.sleep(5)

        with pytest.raises(Interrupted) as caught:
            wait()
        assert caught.value.exit_code == code
        assert signal.getsignal(number) is before

    def test_pass_by_who_catches_every_exception(self, number, code):
        def wait():
            with interruptible():
                try:
                    os.kill(os.getpid(), number)
                    time.sleep(5)
                except Exception:  # noqa: BLE001  as libraries do
                    return

        with pytest.raises(Interrupted):
            wait()

    def test_come_again_where_nothing_can_be_raised(self, number, code):
        class Dropped:
            def __del__(self) -> None:
                os.kill(os.getpid(), number)

        def wait():
            with interruptible():
                dropped = Dropped()
                del dropped
                time.sleep(5)

        begun = time.monotonic()
        with pytest.raises(Interrupted):
            wait()
        assert time.monotonic() - begun < 4

    def test_are_looked_at_once_more_at_the_end(self, number, code):
        def last():
            with deferred():
                os.kill(os.getpid(), number)
                time.sleep(0.01)

        with pytest.raises(Interrupted) as caught:
            last()
        assert caught.value.exit_code == code

    def test_or_wait_for_a_safe_point(self, number, code):
        before = signal.getsignal(number)
        with deferred() as stop:
            stop.check()
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            safe = "reached"
            with pytest.raises(Interrupted) as caught:
                stop.check()
        assert safe == "reached"
        assert caught.value.exit_code == code
        assert signal.getsignal(number) is before
