"""A training that several processes share: the first says what is trained, the others do their part of it and nothing else."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tunesmith.base import Artifact, Events, MachineError, Output
from tunesmith.base.spec import validate
from tunesmith.training.ranks import Ranks

from .finetune import Finetune, begin


@contextmanager
def together() -> Iterator[bool]:
    """Join the processes that `torchrun` started, if it did. In the first of them, or one alone, the block has the word; in the others it comes when all is
    done, and is told False.

    Raises:
        MachineError: the processes do not find each other, or the first is gone.
    """
    ranks = Ranks.joined()
    try:
        if ranks.first:
            yield True
        else:
            take_part(ranks)
            yield False
    finally:
        if ranks.first:
            with suppress(MachineError):
                ranks.told(None)
        ranks.leave()


def take_part(ranks: Ranks) -> None:
    """Do this process's part of every training that the first one begins. Signals are for that one, which finishes the step under way and saves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while (asked := ranks.told()) is not None:
        out = Output(Path(asked.pop("out")), Events(Path(os.devnull)))
        spec, prepared = validate(Finetune, asked.pop("spec"), "finetune"), Artifact.open(Path(asked.pop("prepared")))
        begin(spec, prepared, out, **asked, ranks=ranks).training.take_part()
