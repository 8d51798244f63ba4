"""Files that are either there whole or not at all: hashing, atomic writes and durable renames."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import MachineError

UNFINISHED = re.compile(r"\.(.+\.tmp|tmp\w{6})")
"""Names of files that a kill left half written: ours, and those of safetensors."""

LARGE = 1 << 24
"""Bytes from which on it takes a while to read a file."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk, or one's share of it, is full."""


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The same; of a large file it is computed once, until the system says that the file was written to."""
    told = path.stat()
    if told.st_size < LARGE:
        return sha256(path)
    return _sha256_at(path, told.st_size, told.st_mtime_ns, told.st_ino)


@lru_cache(maxsize=256)
def _sha256_at(path: Path, *_: int) -> str:
    return sha256(path)


def canonical(value: Any) -> str:
    """JSON with one spelling per value, fit for hashing and comparing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """Hex digest of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` such that a reader sees the old or the new content, also after a crash."""
    temporary, content = path.with_name(f".{path.name}.{os.getpid()}.tmp"), text.encode()
    with room(path, len(content)):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        sync_folder(path.parent)


def spelled(value: Any) -> str:
    """The text of a JSON file as `write_json` writes it: indented, keys in their own order."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value atomically."""
    write_atomic(path, spelled(value))


def read_json(path: Path) -> Any:
    """The JSON value in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically, with a digest of itself."""
    write_json(path, {**value, "seal": digest(value)})


def sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, if every byte is as it was written: other white space would be somebody else's, too."""
    try:
        text = path.read_bytes().decode()
        value: dict[str, Any] = json.loads(text)
        return value if text == spelled(value) and value.pop("seal") == digest(value) else None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


@contextmanager
def room(path: Path, needed: int | None = None) -> Iterator[None]:
    """Within this block so many bytes are written at `path`; None is not known.

    Raises:
        MachineError: the disk has no room for them, which is found before anything is written where the system tells it.
    """
    usage = shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.exists()))
    if needed is not None and usage.total and usage.free < needed:  # some file systems say 0 of everything
        raise _full(path, needed)
    try:
        yield
    except Exception as error:
        if any(said_by(error, number) for number in FULL):
            raise _full(Path(getattr(error, "filename", None) or path), needed) from error
        raise


def said_by(error: Exception, number: int) -> bool:
    """Whether an error is the system's of that number; libraries written in other languages put its words into errors of their own."""
    return getattr(error, "errno", None) == number or f"os error {number})" in str(error)


def _full(path: Path, needed: int | None) -> MachineError:
    free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
    wanted = (
        f"{needed:,} bytes are needed and {free:,} free"
        if needed is not None
        else f"more bytes are needed than the {free:,} free"
    )
    return MachineError(
        f"{path}: the disk is full: {wanted}; free some space and run the same command again, it goes on from the last checkpoint"
    )


def clear(folder: Path) -> None:
    """Empty a folder that an earlier, killed attempt may have left half filled."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
