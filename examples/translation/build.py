"""Builds the translation example: English messages of programs and what volunteers made of them, from gettext catalogues.

    python examples/translation/build.py                                    # German, of LibreOffice, into build/translation
    python examples/translation/build.py --language pt_BR --packages libreoffice-l10n-pt-br
    python examples/translation/build.py --folders /usr/share/locale        # of what is installed here
    python examples/translation/build.py --sample                           # the two committed files beside this script

Needs Python's standard library, `apt-get` and `dpkg-deb`; no root, and nothing is installed.
"""

import argparse
import gettext
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = {
    "de": "German",
    "pt_BR": "Brazilian Portuguese",
    "pt": "Portuguese",
    "cs": "Czech",
    "fi": "Finnish",
    "ko": "Korean",
}
PACKAGES = ("libreoffice-l10n-de",)
SAMPLE = ("python3-django", "python3-wtforms", "sphinx-common")
"""Debian packages whose catalogues may be handed on with little said (BSD licences, see NOTICE)."""

SPLITS = ("train", "validation", "test")
CONTEXT = "\x04"
"""Parts a message from the context that tells it from others with the same words."""
PLACEHOLDERS = re.compile(
    r"%\([^)\s]+\)[-#0 +]*[\d.]*[a-zA-Z]|%(?:\d+\$)?[-#0+]*[\d.]*l*[sdiufgxcrn]|%%|%[A-Z0-9]\w*%?|\$\(\w+\)|\$\{\w+\}|\{[^{}\s]*\}|</?[a-zA-Z][^<>]*>|&[a-z]+;|:\w+:`[^`]*`"
)
"""What a program fills in or reads: formats of C and Python, variables, tags, entities, roles."""
MARKS = "_~&"
"""What stands before the letter that a menu is reached by, in GTK, LibreOffice and Qt."""
LONGEST = 60
"""Words of a message."""
RATIO = 3.0
"""How many times as long as the other one of a pair may be, where both are longer than a word or two."""


@dataclass(frozen=True)
class Pair:
    """A message and its translation."""

    source: str
    """The catalogue that it is from."""
    english: str
    translation: str


def messages(catalogue: Path) -> Iterator[tuple[str, str]]:
    """English and translated messages as they stand in a compiled catalogue, without contexts; of plurals the singular.

    The standard library has no public way to list a catalogue.
    """
    with catalogue.open("rb") as file:
        held: dict[Any, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    for key, translation in held.items():
        english, form = key if isinstance(key, tuple) else (key, 0)
        if form == 0:
            yield english.rpartition(CONTEXT)[2], translation


def cleaned(text: str, other: str) -> str:
    """Without the mark of a menu letter, blanks put right. A mark is the only one of its kind, and no part of a name such as `file_name`, which would
    stand in the other side too."""
    bare, names = PLACEHOLDERS.sub(" ", text), other.split()
    for mark in MARKS:
        marked = [word for word in bare.split() if re.search(f"{mark}\\w", word)]
        if bare.count(mark) == 1 and marked and marked[0] not in names:
            parts = re.split(f"({PLACEHOLDERS.pattern})", text)
            text = "".join(part if place % 2 else part.replace(mark, "") for place, part in enumerate(parts))
    return " ".join(text.split())


def placeholders(text: str) -> Counter[str]:
    """What a program fills in, and how often."""
    return Counter(PLACEHOLDERS.findall(text))


def fault(english: str, translation: str) -> str:
    """Why a pair is left out; empty if it is not."""
    if not english or not translation:
        return "empty"
    if english == translation:
        return "not translated"
    if placeholders(english) != placeholders(translation):
        return "other placeholders"
    bare = [PLACEHOLDERS.sub("", text) for text in (english, translation)]
    letters = [sum(letter.isalpha() for letter in text) for text in bare]
    if min(letters) < 2 or any(
        2 * count < len(text.replace(" ", "")) for count, text in zip(letters, bare, strict=True)
    ):
        return "too few letters"
    if max(len(text.split()) for text in bare) > LONGEST:
        return "too long"
    if min(letters) > 15 and max(letters) > RATIO * min(letters):
        return "lengths too far apart"
    return ""


def normal(text: str) -> str:
    """What is left of a text without case, digits, placeholders and punctuation: messages that agree in it are the same."""
    return "".join(letter for letter in PLACEHOLDERS.sub("", text).casefold() if letter.isalpha())


def pairs(catalogues: Iterable[Path]) -> tuple[list[Pair], Counter[str]]:
    """Pairs worth learning from in a fixed random order, each English message once, and how many were left out for what."""
    kept: dict[str, Pair] = {}
    faults: Counter[str] = Counter()
    for catalogue in catalogues:
        for english, translation in messages(catalogue):
            pair = Pair(catalogue.stem, cleaned(english, translation), cleaned(translation, english))
            reason = fault(pair.english, pair.translation) or ("seen before" if normal(pair.english) in kept else "")
            if reason:
                faults[reason] += 1
            else:
                kept[normal(pair.english)] = pair
    return [kept[key] for key in sorted(kept, key=sha256)], faults


def split_of(pair: Pair) -> str:
    """The split of a pair, 15 % test and 5 % validation, by a hash of what it is translated as: neither a message nor its translation is in two."""
    place = int(sha256(normal(pair.translation)), 16) % 100
    return "test" if place < 15 else "validation" if place < 20 else "train"


def row(pair: Pair, language: str) -> dict[str, Any]:
    """A line of the file."""
    return {
        "id": sha256(pair.english)[:12],
        "source": pair.source,
        "prompt": f"Translate into {LANGUAGES.get(language, language)}:\n{pair.english}",
        "answer": pair.translation,
    }


def sha256(text: str) -> str:
    """Hexadecimal SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def catalogues(folders: Iterable[Path], language: str) -> list[Path]:
    """Compiled catalogues of a language, wherever they lie below the folders, by name."""
    return sorted(path for folder in folders for path in folder.rglob(f"{language}/LC_MESSAGES/*.mo"))


def unpacked(packages: Iterable[str], folder: Path) -> Path:
    """Fetch Debian packages with apt and unpack them into `folder`; nothing is installed."""
    done = subprocess.run(
        ["apt-get", "-q", "download", *packages], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"apt-get could not fetch {', '.join(packages)}: {done.stderr.strip()}; `apt-get update` may help"
        )
    for archive in sorted(folder.glob("*.deb")):
        print(archive.name, file=sys.stderr)
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "unpacked")], check=True)
    return folder / "unpacked"


def compressed(rows: Iterable[dict[str, Any]]) -> bytes:
    """The rows as gzipped JSON lines; the same rows give the same bytes, whatever the time or the file's name."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        for each in rows:
            stream.write(json.dumps(each, ensure_ascii=False).encode() + b"\n")
    return buffer.getvalue()


def write(found: list[Pair], language: str, folder: Path, sample: bool) -> None:
    """One file per split; of the sample two, what would be validation being learnt from."""
    folder.mkdir(parents=True, exist_ok=True)
    split = lambda pair: "train" if sample and split_of(pair) != "test" else split_of(pair)  # noqa: E731
    for name in ("train", "test") if sample else SPLITS:
        rows = [row(pair, language) for pair in found if split(pair) == name]
        path = folder / (f"{name}.jsonl.gz" if sample else f"{language}.{name}.jsonl.gz")
        path.write_bytes(compressed(rows))
        print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Fetch the packages unless folders are given, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--language", default="de", help="as catalogues name it (de)")
    add("--packages", nargs="+", default=list(PACKAGES), help="Debian packages with catalogues in them")
    add("--folders", type=Path, nargs="+", help="look for catalogues here instead")
    add("--out", type=Path, metavar="FOLDER", help="for the files (build/translation; --sample: beside this script)")
    add("--sample", action="store_true", help="the small files that are committed")
    given = parser.parse_args()
    out = given.out or (Path(__file__).parent if given.sample else Path("build/translation"))
    with tempfile.TemporaryDirectory() as name:
        folders = given.folders or [unpacked(SAMPLE if given.sample else given.packages, Path(name))]
        files = catalogues(folders, given.language)
        if not files:
            raise SystemExit(f"no catalogue of {given.language!r} in {', '.join(map(str, folders))}")
        found, faults = pairs(files)
    write(found, given.language, out, given.sample)
    print(
        f"{len(files)} catalogues; left out: {', '.join(f'{count} {reason}' for reason, count in faults.most_common())}"
    )


if __name__ == "__main__":
    main()
