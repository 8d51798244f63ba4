"""Builds the debtags example: Debian's package descriptions, and the attributes that Debian's volunteers gave them.

    python examples/debtags/build.py                    # the full set, into build/debtags
    python examples/debtags/build.py --sample           # the two committed files beside this script

Needs Python's standard library and `apt-get`; no root, and nothing of the machine's own package state is touched.
"""

import argparse
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

RELEASE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT_HELPER = "/usr/lib/apt/apt-helper"
INDEXES = ("main_binary-amd64_Packages", "main_i18n_Translation-en")
COMPRESSED = {".gz", ".xz", ".lz4", ".bz2", ".zst"}

ASKED = ("implemented_in", "interface", "uitoolkit", "scope", "role")
"""Attributes a row may ask for, in the order of question and answer: those of which a package mostly has one value."""

INFORMATIVE = ("implemented_in", "interface", "uitoolkit", "scope", "use", "works_with")
"""Facets that say what a package is like; one of which `role` alone is known is left out."""

GRAPHICAL = {"x11", "3d"}
"""Values of `interface` that stand beside `graphical`, and mean the same to a reader of the description."""

DEVICES = {"svga", "framebuffer"}
"""Values of `interface` that name a device and no kind of interface; ignored."""

SPLITS = ("train", "validation", "test")
SAMPLE = {"train": 2000, "test": 400}
DESCRIPTION_WORDS = 120
DEPENDENCIES = 10


@dataclass(frozen=True)
class Record:
    """One package: its row and the split it belongs to."""

    split: str
    row: dict[str, Any]


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Paragraphs of a Debian control file; continuation lines are joined by newlines, less their first blank."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line:
            if fields:
                yield fields
            fields = {}
        elif line[0] in " \t":
            fields[name] += "\n" + line[1:]
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    if fields:
        yield fields


def summary_and_text(description: str) -> tuple[str, str]:
    """The first line, and the paragraphs below it unwrapped to one line each (a lone full stop parts them)."""
    summary, *lines = description.split("\n")
    paragraphs: list[list[str]] = [[]]
    for line in (line.strip() for line in lines):
        if line == ".":
            paragraphs.append([])
        else:
            paragraphs[-1].append(line)
    return summary.strip(), "\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)


def facets(tags: str) -> dict[str, set[str]]:
    """Values of each facet in a `Tag` field, e.g. `role::program, uitoolkit::qt`; empty if not yet tagged."""
    found: dict[str, set[str]] = {}
    for tag in tags.replace("\n", " ").split(","):
        facet, _, value = tag.strip().partition("::")
        if facet == "special" and value.startswith("not-yet-tagged"):
            return {}
        key = facet.replace("-", "_")
        if key == "interface" and value in GRAPHICAL:
            value = "graphical"
        if value and value != "TODO" and not (key == "interface" and value in DEVICES):
            found.setdefault(key, set()).add(value)
    return found


def is_plain_perl_module(found: dict[str, set[str]]) -> bool:
    """Whether all that is known is "written in Perl": some 2,400 CPAN modules that differ in little but the name."""
    return found.get("implemented_in") == {"perl"} and sum(key in found for key in INFORMATIVE) == 1


def answer(found: dict[str, set[str]]) -> dict[str, str]:
    """The attributes to ask for: those with exactly one value.

    Tagging is incomplete, so a tag that is missing says nothing, and is never asked for.
    """
    return {key: next(iter(found[key])) for key in ASKED if len(found.get(key, ())) == 1}


def question(package: str, keys: Iterable[str], summary: str, text: str, depends: str) -> str:
    """The user's message; the description is cut to its first words, dependencies to the first few without versions."""
    names = [re.split(r"[ (:|]", entry.strip(), maxsplit=1)[0] for entry in depends.split(",") if entry.strip()]
    return (
        f"Extract {', '.join(keys)} of this software package. Answer with one JSON object with exactly these keys.\n"
        f"Name: {package}\n"
        f"Summary: {summary}\n"
        f"Description: {' '.join(text.split()[:DESCRIPTION_WORDS])}\n"
        f"Depends: {', '.join(names[:DEPENDENCIES])}"
    )


def split_of(source: str) -> str:
    """The split of a source package, so of all packages built from it: by hash, 15 % test and 5 % validation."""
    place = int(sha256(source), 16) % 100
    return "test" if place < 15 else "validation" if place < 20 else "train"


def sha256(text: str) -> str:
    """Hexadecimal SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def records(packages: Iterable[str], translations: Iterable[str]) -> list[Record]:
    """All records of an index, in a fixed random order: the first N of a split are a random sample of it.

    `packages` and `translations` are the lines of `Packages` (tags, dependencies) and `Translation-en` (descriptions).
    A package described word for word as an earlier one is dropped.
    """
    long = {(item["Package"], item["Description-md5"]): item["Description-en"] for item in stanzas(translations)}
    kept: dict[str, Record] = {}
    described: set[tuple[str, str]] = set()
    for item in stanzas(packages):
        package = item["Package"]
        found = facets(item.get("Tag", ""))
        if not any(key in found for key in INFORMATIVE):
            continue
        described_as = long.get((package, item.get("Description-md5", "")), item.get("Description", ""))
        summary, text = summary_and_text(described_as)
        if (summary, text) in described or package in kept:
            continue
        described.add((summary, text))
        gold = answer(found)
        if not gold or is_plain_perl_module(found):
            continue
        source = item.get("Source", package).split(" ")[0]
        messages = [
            {"role": "user", "content": question(package, gold, summary, text, item.get("Depends", ""))},
            {"role": "assistant", "content": json.dumps(gold)},
        ]
        kept[package] = Record(split_of(source), {"id": package, "source": source, "messages": messages})
    return [kept[package] for package in sorted(kept, key=sha256)]


def compressed(rows: Iterable[dict[str, Any]]) -> bytes:
    """The rows as gzipped JSON lines; the same rows give the same bytes, whatever the time or the file's name."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return buffer.getvalue()


def index_lines(lists: Path, name: str) -> list[str]:
    """Lines of one of the release's index files, e.g. `main_i18n_Translation-en`, however apt has compressed it."""
    files = sorted(lists.glob(f"*_dists_{RELEASE}_{name}*"))
    if not files:
        raise SystemExit(f"{lists}: no {name} of {RELEASE}; leave --lists out and it is fetched")
    if files[0].suffix in COMPRESSED:
        content = subprocess.run([APT_HELPER, "cat-file", str(files[0])], check=True, stdout=subprocess.PIPE).stdout
    else:
        content = files[0].read_bytes()
    return content.decode().split("\n")


def mirror() -> str:
    """The Debian mirror in this machine's own apt sources; of several, the one that already serves the release."""
    targets = ["--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Component: main"]
    done = subprocess.run(["apt-get", "indextargets", *targets], check=True, stdout=subprocess.PIPE, text=True)
    listed = done.stdout.splitlines()
    candidates = [line.split() for line in sorted(set(listed)) if line.split()[0].rstrip("/").endswith("/debian")]
    if not candidates:
        raise SystemExit("no Debian mirror in /etc/apt; name one: --mirror http://deb.debian.org/debian")
    return min(candidates, key=lambda entry: entry[1] != RELEASE)[0]


def fetch(uri: str, state: Path) -> Path:
    """Runs `apt-get update` for this mirror alone, with all its state in the folder `state`; gives the folder of lists.

    The machine's own settings (proxy, credentials) stay in force, apart from those that would compress or leave out an
    index or run a hook. The architecture is fixed, so that every machine sees the same packages.
    """
    lists, sources, settings = state / "lists", state / "sources.d", state / "apt.conf"
    (lists / "partial").mkdir(parents=True)
    sources.mkdir()
    (sources / "debian.sources").write_text(
        f"Types: deb\nURIs: {uri}\nSuites: {RELEASE}\nComponents: main\nArchitectures: amd64\n"
        f"Targets: Packages Translations\nSigned-By: {KEYRING}\n"
    )
    settings.write_text(
        "#clear APT::Update;\n#clear Acquire::Languages;\n#clear APT::Architectures;\n"
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{sources}";\n'
        f'Dir::State "{state}"; Dir::State::lists "{lists}"; Dir::State::status "/dev/null";\n'
        f'Dir::Cache "{state}"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
        'Acquire::Languages "en"; Acquire::GzipIndexes "false"; Acquire::Retries "3";\n'
        'APT::Architecture "amd64"; APT::Architectures "amd64";\n'
        'APT::Sandbox::User "root"; APT::Update::Error-Mode "any";\n'
    )
    command = ["apt-get", "-c", str(settings), "-qq", "update"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"apt-get could not fetch {RELEASE} from {uri}: {done.stderr.strip()}")
    return lists


def release_date(lists: Path) -> str:
    """When Debian published the index, e.g. `Sat, 11 Jul 2026 10:16:37 UTC`."""
    return next(line[6:].strip() for line in index_lines(lists, "*Release") if line.startswith("Date: "))


def class_table(rows: Iterable[dict[str, Any]]) -> str:
    """How often each value of each attribute stands in the answers, the commonest first, as a Markdown table."""
    counts: dict[str, Counter[str]] = {key: Counter() for key in ASKED}
    for row in rows:
        for key, value in json.loads(row["messages"][-1]["content"]).items():
            counts[key][value] += 1
    lines = ["| attribute | rows | classes | values and their rows |", "|---|---:|---:|---|"]
    for key, values in counts.items():
        ranked = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = ", ".join(f"{value} {count}" for value, count in ranked)
        lines.append(f"| `{key}` | {values.total()} | {len(values)} | {shown} |")
    return "\n".join(lines)


def write(found: list[Record], folder: Path, sample: bool) -> None:
    """Writes one file per split, or the sample's two, and says what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SAMPLE if sample else SPLITS:
        rows = [record.row for record in found if record.split == split][: SAMPLE[split] if sample else None]
        path = folder / (f"{split}.jsonl.gz" if sample else f"debtags.{split}.jsonl.gz")
        path.write_bytes(compressed(rows))
        print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Fetches the index unless it is given, builds the records, writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="for the files (build/debtags; --sample: beside this script)")
    add("--lists", type=Path, metavar="FOLDER", help="index files that apt fetched before; nothing is fetched")
    add("--mirror", metavar="URI", help="a Debian mirror (the one in this machine's apt sources)")
    add("--sample", action="store_true", help="write only the first 2,000 rows of train and 400 of test")
    options = parser.parse_args()
    out = options.out or (Path(__file__).parent if options.sample else Path("build/debtags"))
    with tempfile.TemporaryDirectory(prefix="debtags-") as state:
        lists = options.lists or fetch(options.mirror or mirror(), Path(state))
        print(f"Debian {RELEASE}, index of {release_date(lists)}", file=sys.stderr)
        packages, translations = (index_lines(lists, name) for name in INDEXES)
    found = records(packages, translations)
    write(found, out, options.sample)
    if not options.sample:
        print(class_table(record.row for record in found))


if __name__ == "__main__":
    main()
