"""The command line: thin, and quick to say what it can do."""

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from tunesmith.base import Interrupted, TunesmithError
from tunesmith.base.errors import exhausted
from tunesmith.base.files import room, said_by
from tunesmith.base.launched import several
from tunesmith.base.secrets import redact_crashes, redacted
from tunesmith.base.signals import interruptible

ADVICE = {
    errno.EACCES: "no permission; choose a folder you own with --run",
    errno.EPERM: "no permission; choose a folder you own with --run",
    errno.EROFS: "the file system is read-only; choose another folder with --run",
}


def main() -> None:
    """Run a command; whatever the user can mend is one line on standard error and exit code 2."""
    from .app import app

    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        with interruptible(), room(Path.cwd()):
            code = app(standalone_mode=False)
    except (TunesmithError, Interrupted) as error:
        fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  the edge of the program: what the user cannot mend is raised on
        fail(_advice(error), 2)
    leave(code if isinstance(code, int) else 0)


def _advice(error: Exception) -> str:
    """What to tell the user of an error that is not ours; those that are nobody's fault but ours are raised on."""
    usage_error = typer.BadParameter.mro()[2]  # ClickException, of whichever click this typer carries
    if isinstance(error, usage_error):
        return f"{error.format_message()}; see `tunesmith --help`"  # type: ignore[attr-defined]
    if exhausted(error):
        return "this machine ran out of memory; set finetune.micro_batch=1, or a smaller model; see `tunesmith plan`"
    for number, advice in ADVICE.items():
        if said_by(error, number):
            return f"{getattr(error, 'filename', None) or 'writing'}: {advice}"
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
