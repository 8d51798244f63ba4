"""The command line: thin, and quick to say what it can do."""

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from tunesmith.base import Interrupted, MachineError, TunesmithError
from tunesmith.base.errors import exhausted
from tunesmith.base.files import room, said_by
from tunesmith.base.launched import several
from tunesmith.base.secrets import redact_crashes, redacted
from tunesmith.base.signals import interruptible

ADVICE = {
    errno.EACCES: "no permission; take a file or a folder that you own, or change its permissions",
    errno.EPERM: "no permission; take a file or a folder that you own, or change its permissions",
    errno.EROFS: "the file system is read-only; take a folder on another one",
}

STANDARD_OUTPUT = 1
"""The system's number of it."""


def main() -> None:
    """Run a command; whatever the user can mend is one line on standard error and exit code 2."""
    from .app import app

    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        with interruptible(), room(_here()):
            code = app(standalone_mode=False)
            sys.stdout.flush()
    except (TunesmithError, Interrupted) as error:
        fail(_unwritten(error.__cause__) or str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  the edge of the program: what the user cannot mend is raised on
        fail(_unwritten(error) or _advice(error), 2)
    leave(code if isinstance(code, int) else 0)


def _here() -> Path:
    """The current folder."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise MachineError(
            "the current folder was deleted; change to another one (cd), and run the command there"
        ) from None


def _unwritten(reason: BaseException | None) -> str | None:
    """Why standard output cannot be written, if an error came of that; what was still to be written is dropped, or Python would try again at its end."""
    if not isinstance(reason, OSError):
        return None
    try:
        sys.stdout.flush()
        os.write(STANDARD_OUTPUT, b"")  # a device that is full says so even then, where a flush does but once
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_OUTPUT)
        return f"standard output: cannot be written ({error.strerror}); send it elsewhere"
    return None


def _advice(error: Exception) -> str:
    """What to tell the user of an error that is not ours; those that are nobody's fault but ours are raised on."""
    usage_error = typer.BadParameter.mro()[2]  # ClickException, of whichever click this typer carries
    if isinstance(error, usage_error):
        return f"{error.format_message()}; see `tunesmith --help`"  # type: ignore[attr-defined]
    if exhausted(error):
        return "this machine ran out of memory; set finetune.micro_batch=1, or a smaller model; see `tunesmith plan`"
    for number, advice in ADVICE.items():
        if said_by(error, number):
            return f"{getattr(error, 'filename', None) or 'reading or writing'}: {advice}"
    redact_crashes()
    raise error


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong on one line and leave."""
    print(f"tunesmith: {redacted(' '.join(message.split()))}", file=sys.stderr, flush=True)
    leave(code)


def leave(code: int) -> NoReturn:
    """End with an exit code; at once where a signal asked for it, or where threads of torch's engine, still joined to other processes, would abort this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code > 128 or several():
        os._exit(code)
    sys.exit(code)
