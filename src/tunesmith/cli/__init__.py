"""The command line: thin, and quick to say what it can do."""

import errno
import os
import sys

from tunesmith.base import TunesmithError
from tunesmith.base.signals import interruptible

ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again, it goes on from the last checkpoint",
    errno.EACCES: "no permission; choose a folder you own with --run",
    errno.EPERM: "no permission; choose a folder you own with --run",
    errno.EROFS: "the file system is read-only; choose another folder with --run",
    errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
}


def main() -> None:
    """Run a command; whatever the user can mend is one line on standard error and exit code 2."""
    from .app import app

    try:
        with interruptible():
            code = app(standalone_mode=False)
    except TunesmithError as error:
        fail(str(error), error.exit_code)
    except MemoryError:
        fail("this machine ran out of memory; set finetune.micro_batch=1, or a smaller model; see `tunesmith plan`", 2)
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        fail(f"{error.filename or 'writing'}: {ADVICE[error.errno]}", 2)
    except Exception as error:
        import click

        if isinstance(error, click.exceptions.Abort):
            fail("interrupted", 130)
        if not isinstance(error, click.ClickException):
            raise
        fail(f"{error.format_message()}; see `tunesmith --help`", 2)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int) -> None:
    """Say what is wrong on one line and leave."""
    print(f"tunesmith: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code) if code > 128 else sys.exit(code)
