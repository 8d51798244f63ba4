"""The process in which a model's chat template runs: it can open no file and start no program, and is ended by the system beyond its time or memory.

Started by `template.py`, by the path of this file, so that nothing but what renders is imported. What a template finds there is what transformers
gives it; a test compares the two.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import jinja2
import jinja2.debug
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

TOO_LARGE, TOO_LONG = 3, 4
"""What the process ends with where memory does not suffice, and where texts become too long."""
TODAY = "today"
"""What of a call is the day (YYYY-MM-DD) that the template shall take for today, if not the clock's."""
COMMON = r"{{ 'a\n' | trim }}{{ [1] | tojson }}{{ strftime_now('%d %b') }}{{ 'a%s' | format(1) }}"
"""Rendered once while files can still be opened: Python imports some of what is needed late. So is `jinja2.debug` imported."""


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


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which some templates put around what is learnt: here only what stands in it counts."""

    tags = {"generation"}  # noqa: RUF012  so jinja2 asks for it

    def parse(self, parser: Any) -> Any:
        """The nodes within."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> jinja2.Environment:
    """What transformers renders chat templates in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:  # fmt: skip
    """As jinja2's own, but nothing is spelled for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def confine(memory: int) -> None:
    """From here on there are so many more bytes of memory, no file that could be opened and none that could be written."""
    with suppress(FileNotFoundError):  # only Linux counts address space so that it can be limited
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def main() -> None:
    """Answer lists of conversations with lists of texts, or with the reason why there is none, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is told too, and ends this one
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    template, seconds, memory, longest = receive(asked)
    environment().from_string(COMMON).render()
    confine(memory)
    compiled = None
    while (wanted := receive(asked)) is not None:
        try:
            texts = []
            for call in wanted:
                signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor's time; the signal ends the process
                compiled = compiled or environment().from_string(template)
                if day := call.pop(TODAY, None):
                    call["strftime_now"] = datetime.fromisoformat(day).strftime
                texts.append(compiled.render(**call))
            if sum(map(len, texts)) > longest:
                sys.exit(TOO_LONG)
        except MemoryError:
            sys.exit(TOO_LARGE)
        except Exception as error:  # noqa: BLE001  the template's own refusal, or what is wrong with it
            send(answers, {"error": " ".join(str(error).split())[:500] or type(error).__name__})
        else:
            send(answers, {"texts": texts})
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
