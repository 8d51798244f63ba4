"""Which version of the trials made a result: a digest of all that they are written in."""

import hashlib
from pathlib import Path


def harness() -> str:
    """sha256 over names and contents of this folder's programs."""
    found = hashlib.sha256()
    for file in sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".c")):
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
