"""What `torchrun` says of a process that it started: which of how many it is."""

import os


def several() -> bool:
    """Whether others were started with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def follows() -> bool:
    """Whether this one is not the first of them."""
    return several() and os.environ["RANK"] != "0"
