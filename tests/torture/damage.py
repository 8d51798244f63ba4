"""Ten kinds of damage to a file, as disks, copies and people do it."""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def _change(harm: Callable[[bytearray], object]) -> Callable[[Path, Path, Path], None]:
    def change(file: Path, other: Path, older: Path) -> None:
        content = bytearray(file.read_bytes())
        harm(content)
        file.write_bytes(content)

    return change


def _flip(content: bytearray) -> None:
    content[len(content) * 2 // 3] ^= 1


def _blank(content: bytearray) -> None:
    middle, size = len(content) // 2, min(512, len(content) // 4)
    content[middle : middle + size] = bytes(size)


def _swap(file: Path, other: Path, older: Path) -> None:
    aside = file.with_name("aside")
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


def _folder(file: Path, other: Path, older: Path) -> None:
    file.unlink()
    file.mkdir()


KINDS: dict[str, Callable[[Path, Path, Path], object]] = {
    "cut in half": _change(lambda content: content.__delitem__(slice(len(content) // 2, None))),
    "one byte short": _change(lambda content: content.pop()),
    "empty": _change(lambda content: content.clear()),
    "deleted": lambda file, other, older: file.unlink(),
    "a bit flipped": _change(_flip),
    "a block of zeros": _change(_blank),
    "longer": _change(lambda content: content.extend(b"\n")),
    "swapped with another": _swap,
    "stale": lambda file, other, older: shutil.copy(older, file),
    "a folder instead": _folder,
}
"""What is done to a file, given another of the same folder and its own older version."""


def damage(kind: str, file: Path, other: Path, older: Path) -> None:
    """Damage a file, and see that it is damaged."""
    before = file.read_bytes()
    KINDS[kind](file, other, older)
    assert not file.is_file() or file.read_bytes() != before, f"{kind}: {file} is as it was"


@contextmanager
def one_byte_changed(places: Sequence[Path], generator: random.Random) -> Iterator[tuple[Path, str]]:
    """Change a random byte of a random file, and say which; afterwards it is as it was."""
    file = generator.choice([one for one in places if one.stat().st_size])
    place, change = generator.randrange(file.stat().st_size), generator.randrange(1, 256)
    sound = bytearray(file.read_bytes())
    harmed = bytearray(sound)
    harmed[place] ^= change
    file.write_bytes(harmed)
    try:
        yield file, f"byte {place} ^ {change}"
    finally:
        file.write_bytes(sound)
