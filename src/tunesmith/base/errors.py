"""The few errors a user can meet; each says what, where and how to mend, and is the standard one at once."""


class TunesmithError(Exception):
    """Root of everything tunesmith refuses; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class ConfigError(TunesmithError, ValueError):
    """A recipe or an option is wrong."""


class DataError(TunesmithError, ValueError):
    """The user's rows cannot be used as they are."""


class ModelError(TunesmithError, ValueError):
    """A model cannot be found, loaded or trained."""


class ArtifactError(TunesmithError, OSError):
    """A run folder or an artifact is missing, damaged, locked or cannot be written."""


class BusyError(ArtifactError):
    """Another process works in a run folder."""


class MachineError(TunesmithError, RuntimeError):
    """This machine lacks something: memory, disk, a port, a package."""


class ProofError(TunesmithError, AssertionError):
    """A claim about an artifact was checked and does not hold."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived and everything worth keeping was saved; exits 130 or 143. As KeyboardInterrupt, it passes by who catches every Exception."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted; run the same command again to go on from here")
        self.exit_code = 128 + signal_number


def exhausted(error: BaseException) -> bool:
    """Whether memory ran out: Python's, a GPU's, or what torch asked of the system, which has no error of its own. Torch need not be there to ask."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
