"""Reading text files that strangers wrote: compressed or not, with a byte order mark or without, of any encoding."""

import codecs
import difflib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from tunesmith.base import DataError

from .record import LONGEST

BYTES_PER_LINE = 8 * LONGEST
"""A longer line is passed over without being held in memory."""
BOMB, SWELL = 1 << 24, 500
"""Uncompressed bytes from which on it is asked how many there are for each compressed one, and how many are too many: zeros come to 1,030."""
MARK_REMOVED = "a byte order mark at the start was removed"


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed; gzip is told by its first bytes, not by the name.

    Raises:
        DataError: it cannot be read, or is a bomb.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return _unzipped(path) if zipped else path.open("rb")
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def check_readable(path: Path) -> None:
    """Refuse at once what no reader could make sense of.

    Raises:
        DataError: no permission, not UTF-8 but UTF-16, or only a pointer to the data.
    """
    with open_binary(path) as file:
        head = _read(file, 64, path)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8, for example with `iconv -f utf-16 -t utf-8`")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git LFS pointer, not the data; fetch it with `git lfs pull`")


def raw_lines(path: Path) -> Iterator[bytes]:
    """Every line's bytes with its end; a line beyond BYTES_PER_LINE comes in parts.

    Raises:
        DataError: the file cannot be read or is damaged.
    """
    with open_binary(path) as file:
        while raw := _readline(file, path):
            yield raw


def lines(path: Path) -> Iterator[tuple[int, str | None, str | None, str | None]]:
    """Number (from 1), text without its line end, defect and note of every line that is not blank.

    A line that is no valid UTF-8 or far too long has a defect and no text.
    """
    with open_binary(path) as file:
        number = 0
        while raw := _readline(file, path):
            number += 1
            note = None
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                raw, note = raw[len(codecs.BOM_UTF8) :], MARK_REMOVED
            text, defect = _decode(raw, file, path)
            if defect or (text and text.strip()):
                yield number, text, defect, note


def read_text(path: Path) -> tuple[str, str | None]:
    """The whole file and what was mended in it.

    Raises:
        DataError: it is not UTF-8.
    """
    with open_binary(path) as file:
        raw = _read(file, -1, path)
    note = MARK_REMOVED if raw.startswith(codecs.BOM_UTF8) else None
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8"), note
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not valid UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def missing(path: Path) -> DataError:
    """The error for a file that is not there, with the nearest name that is."""
    folder = path.parent
    if not folder.is_dir():
        return DataError(
            f"{path}: no such file, and no folder {folder} either; paths count from the current folder, {Path.cwd()}"
        )
    near = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], n=1)
    hint = f"did you mean {near[0]}?" if near else f"paths count from the current folder, {Path.cwd()}"
    return DataError(f"{path}: no such file; {hint}")


def _decode(raw: bytes, file: IO[bytes], path: Path) -> tuple[str | None, str | None]:
    if len(raw) > BYTES_PER_LINE and not raw.endswith(b"\n"):
        while (more := _readline(file, path)) and not more.endswith(b"\n"):
            pass
        return None, f"too long: the line has more than {LONGEST:,} characters"
    try:
        text = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        return None, f"not valid UTF-8: byte 0x{raw[error.start]:02x} at place {error.start + 1} of the line"
    if len(text) > LONGEST:
        return None, f"too long: the line has more than {LONGEST:,} characters"
    return text, "holds a NUL character" if "\0" in text else None


def _readline(file: IO[bytes], path: Path) -> bytes:
    try:
        raw = file.readline(BYTES_PER_LINE + 1)
        _refuse_bomb(file, path)
        return raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None


def _read(file: IO[bytes], count: int, path: Path) -> bytes:
    try:
        if count >= 0:
            return file.read(count)
        parts = []
        while part := file.read(BOMB):
            parts.append(part)
            _refuse_bomb(file, path)
        return b"".join(parts)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None


def _unzipped(path: Path) -> IO[bytes]:
    """A compressed file, whose beginning was looked at: a million rows of nothing are read only after that."""
    file = cast(IO[bytes], gzip.open(path))  # noqa: SIM115  whoever asked closes it
    _read(file, BOMB + 1, path)
    _refuse_bomb(file, path)
    file.seek(0)
    return file


def _refuse_bomb(file: IO[bytes], path: Path) -> None:
    """Refuse a compressed file that is little but what it becomes."""
    if isinstance(file, gzip.GzipFile) and (size := file.tell()) > BOMB:
        packed = cast(IO[bytes], file.fileobj).tell()
        if size > SWELL * packed:
            raise DataError(
                f"{path}: becomes more than {SWELL} times as long when it is uncompressed, as no rows do; if they are rows, give them uncompressed"
            )


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: the compressed file is damaged or cut short ({error}); fetch or compress it again")
