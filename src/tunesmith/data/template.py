"""A model's chat template, run in a process of its own: it comes with the model, so it is a stranger's program."""

import os
import signal
import subprocess
import sys
import weakref
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from tunesmith.base import DataError, ModelError

from .template_process import TOO_LARGE, TOO_LONG, receive, send

SECONDS = 0.5
"""Of the processor's time for one conversation; an ordinary template takes some microseconds a message."""
MEMORY = 512 << 20
"""Bytes that it may need beyond what rendering itself does."""
INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
"""Variables that the process gets of the environment, in which keys may stand."""
LONGEST = 20_000_000
"""Characters that it may make of what it is asked at once."""


class Template:
    """Renders conversations as transformers' `apply_chat_template` does, in jinja2's sandbox, within limits of time and size."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, calls: list[dict[str, Any]], where: str) -> list[str]:
        """Texts of conversations.

        Args:
            calls: what the template takes of each: `messages`, `tools` and so on; `today` (YYYY-MM-DD) stands for the clock.
            where: the file that the template is in.

        Raises:
            DataError: the template refuses one, or cannot render it.
            ModelError: it did not end in time, needs too much memory or makes too much text, or its process was ended by something else.
        """
        with self._lock:
            process = self._process or self._start()
            try:
                send(process.stdin, calls)  # type: ignore[arg-type]
                found = receive(process.stdout)  # type: ignore[arg-type]
            except BrokenPipeError:
                found = None
            if found is None:
                process.communicate()  # it has ended
                self._process = None
                raise ModelError(f"{where}: {_why(process.returncode)}")
        if "error" in found:
            raise DataError(f"the model's chat template cannot render it: {found['error']}")
        texts: list[str] = found["texts"]
        return texts

    def _start(self) -> subprocess.Popen[bytes]:
        variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))]
        made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
        self._process = made
        weakref.finalize(self, _end, made)
        send(made.stdin, [self.text, SECONDS, MEMORY, LONGEST])  # type: ignore[arg-type]
        return made


def _why(status: int) -> str:
    """What a process ended for that ended with this status, and what to do."""
    reasons = {
        -signal.SIGPROF: f"needs more than {SECONDS:g} s of the processor for a conversation",
        TOO_LARGE: f"needs more than {MEMORY >> 20} MiB for a conversation",
        TOO_LONG: f"makes more than {LONGEST:,} characters of what it is given",
    }
    if status in reasons:
        return f"the chat template {reasons[status]}; mend it, or take the model from a source you trust"
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return f"the process that runs the chat template was ended from outside or failed ({ended}); see whether the machine is out of memory, and start again"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@lru_cache(maxsize=8)
def template_of(text: str) -> Template:
    """The template with this text; one process runs it for all renderers."""
    return Template(text)


def file_of(tokenizer: Any) -> str:
    """Where a tokenizer has its chat template from."""
    folder = Path(tokenizer.name_or_path)
    names = ("chat_template.jinja", "tokenizer_config.json")
    return str(next((folder / name for name in names if (folder / name).is_file()), folder))
