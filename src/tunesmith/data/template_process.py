"""The process in which a model's chat template runs: it can open no file and start no program, and is ended by the system beyond its time or memory.

Started by `template.py`, by the path of this file, so that nothing but what renders is imported.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def send(pipe: IO[bytes], value: Any) -> None:
    """A JSON value behind its length."""
    text = json.dumps(value, default=str).encode()
    pipe.write(len(text).to_bytes(8, "little") + text)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """A JSON value; None if the other side is gone."""
    size = int.from_bytes(pipe.read(8), "little")
    text = pipe.read(size)
    return json.loads(text) if text and len(text) == size else None


def confine(memory: int) -> None:
    """From here on there are so many more bytes of memory, no file that could be opened and none that could be written."""
    with suppress(FileNotFoundError):  # where there is no such file, address space is not counted so that it could be limited
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def main() -> None:
    """Answer lists of conversations with lists of texts, or with the reason why there is none, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is told too, and its end is the end of this one
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from transformers.utils.chat_template_utils import render_jinja_template

    render_jinja_template([[]], chat_template="{{ 1 }}{{ [1] | tojson }}")  # what is imported late
    template, seconds, memory, longest = receive(asked)
    confine(memory)
    while (wanted := receive(asked)) is not None:
        try:
            texts = []
            for call in wanted:
                signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor's time; the signal ends the process
                texts.append(render_jinja_template([call.pop("messages")], chat_template=template, **call)[0][0])
            if sum(map(len, texts)) > longest:
                raise ValueError(f"it makes more than {longest:,} characters of it")
        except Exception as error:  # the template's own refusal, or what is wrong with it
            send(answers, {"error": " ".join(str(error).split())[:500] or type(error).__name__})
        else:
            send(answers, {"texts": texts})
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
