"""What a process was given by whoever started it: which of how many it is, and how many cores."""

import os


def several() -> bool:
    """Whether others were started with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def usable_cores() -> int:
    """How many this process may use: not all of the machine's where a scheduler gave it some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def follows() -> bool:
    """Whether this one is not the first of them."""
    return several() and os.environ["RANK"] != "0"
