"""Rendering of many examples in processes beside this one, which writes their rows meanwhile."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import cycle
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np

from tunesmith.base import DataError, MachineError
from tunesmith.base.launched import usable_cores
from tunesmith.base.secrets import redact_crashes
from tunesmith.data.example import Example, Row, Sequence
from tunesmith.data.render import Renderer
from tunesmith.models.find import load_tokenizer, locate

MANY = 10_000
"""Examples from which on a process for each core is worth its start."""
Lines = list[bytes]
"""Examples as JSON."""
Rows = list[Row | DataError]


class Rendering:
    """Turns examples into rows: here, or if there are many in processes that live as long as the `with` block.

    They are programs of their own at the other end of a pipe: this process may hold threads, and the script that it runs needs no guard.
    """

    def __init__(self, tokenizer: Any, name: str, supervise: Literal["answers", "all"], count: int) -> None:
        """For some `count` examples; processes load the tokenizer by its name."""
        cores = usable_cores() if count >= MANY else 1
        self.today = date.today().isoformat() if "strftime_now" in str(tokenizer.chat_template) else None
        """What all rows are told is today, if the template asks; it may become tomorrow meanwhile."""
        self.renderer = Renderer(tokenizer, supervise, self.today)
        place = str(locate(name)) if cores > 1 else ""  # a folder is not looked at anew by each
        self.workers = [_Worker(place, supervise, self.today or "") for _ in range(cores if cores > 1 else 0)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.end()

    def rows(self, chunks: Iterable[Lines]) -> Iterator[tuple[Lines, Rows]]:
        """Each chunk of examples with its rows, in order.

        Raises:
            MachineError: a process was ended by something else.
        """
        if not self.workers:
            yield from ((chunk, rendered(self.renderer, chunk)) for chunk in chunks)
            return
        asked = deque[tuple[_Worker, Lines]]()
        for chunk, worker in zip(chunks, cycle(self.workers)):
            done = (asked.popleft()[1], worker.answer()) if len(asked) == len(self.workers) else None
            worker.ask(chunk)
            asked.append((worker, chunk))
            if done:
                yield done
        yield from ((chunk, worker.answer()) for worker, chunk in asked)


def rendered(renderer: Renderer, lines: Lines) -> Rows:
    """The rows of examples, or what is wrong with them."""
    return renderer.rows(Example.from_json(json.loads(line)) for line in lines)


class _Worker:
    """A process that renders one chunk at a time; it ends when its input does, so it never outlives this one."""

    def __init__(self, *arguments: str) -> None:
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)

    def ask(self, lines: Lines) -> None:
        """Hand over a chunk; its answer must be taken before the next."""
        with self._lost(BrokenPipeError):
            _send(self.process.stdin, b"\n".join(lines))

    def answer(self) -> Rows:
        """The rows of what was asked."""
        with self._lost(EOFError):
            facts, tokens, learn = (_receive(self.process.stdout) for _ in range(3))
        return _unpacked(json.loads(facts), np.frombuffer(tokens, np.int32), np.frombuffer(learn, bool))

    @contextmanager
    def _lost(self, sign: type[Exception]) -> Iterator[None]:
        try:
            yield
        except sign:
            code = self.process.wait()
            raise MachineError(
                f"a process that rendered rows ended with status {code} (-9: killed, often for want of memory); what it said stands above"
            ) from None

    def end(self) -> None:
        """Let it go, whatever it is doing."""
        self.process.kill()
        with suppress(BrokenPipeError), self.process:  # what was on its way to it
            pass


def _send(pipe: Any, *parts: bytes) -> None:
    """Each part behind its length."""
    for part in parts:
        pipe.write(len(part).to_bytes(8, "little") + part)
    pipe.flush()


def _receive(pipe: Any) -> bytes:
    """A part.

    Raises:
        EOFError: the other side is gone.
    """
    size = int.from_bytes(pipe.read(8), "little")
    found: bytes = pipe.read(size)
    if not found or len(found) < size:
        raise EOFError
    return found


def _packed(rows: Rows) -> tuple[bytes, bytes, bytes]:
    """Facts as JSON, then the tokens and the masks of all sequences."""
    facts = [
        {"error": str(row)}
        if isinstance(row, DataError)
        else [row.origin, dict(row.columns), [len(one) for one in row.sequences]]
        for row in rows
    ]
    sequences = [one for row in rows if isinstance(row, Row) for one in row.sequences]
    tokens, learn = (b"".join(getattr(one, name).tobytes() for one in sequences) for name in ("tokens", "learn"))
    return json.dumps(facts).encode(), tokens + b"\0" * 4, learn + b"\0"  # never empty, as the end of a pipe is


def _unpacked(facts: list[Any], tokens: np.ndarray, learn: np.ndarray) -> Rows:
    found: Rows = []
    at = 0
    for fact in facts:
        if isinstance(fact, dict):
            found.append(DataError(fact["error"]))
            continue
        origin, columns, sizes = fact
        ends = [at := at + size for size in sizes]
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        found.append(Row(origin, tuple(Sequence(tokens[part], learn[part]) for part in parts), columns))
    return found


def main() -> None:
    """Answer chunks of examples from standard input on standard output, until there are no more."""
    redact_crashes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is told too, and ends this one
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    renderer = Renderer(load_tokenizer(sys.argv[1]), cast(Any, sys.argv[2]), sys.argv[3])
    gc.freeze()  # what is loaded stays; the collector need not look at it again and again
    gc.set_threshold(100_000)
    with suppress(EOFError):
        while True:
            _send(answers, *_packed(rendered(renderer, _receive(asked).split(b"\n"))))


if __name__ == "__main__":
    main()
