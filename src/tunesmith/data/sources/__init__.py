"""Where rows come from: one file per kind of file, and the one door `open_source` that picks the kind from the path."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.base import DataError, load_members

from .dataset import Dataset
from .record import Record, Source
from .text_file import check_readable, missing

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""How files and folders of a split are called in the wild."""

load_members(__name__, __path__)


def open_source(path: str | Sequence[str], split: str = "train") -> Iterator[Record]:
    """Every record of a file, a glob, a folder or a list of these, in order; each is a row or says why it is none.

    Args:
        path: what the user wrote. A folder is one written by `datasets.save_to_disk`, or one of data files.
        split: which split to take where a folder holds several.

    Raises:
        DataError: a path does not exist, is empty of data, or cannot be read as a whole.
    """
    for file in find_files(path, split):
        yield from member_for(file).records(file)


def find_files(path: str | Sequence[str], split: str = "train") -> tuple[Path, ...]:
    """The data files that `open_source` would read, in order, each once.

    Raises:
        DataError: nothing is there.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise DataError("source: the list is empty; give the path of a data file, for example train.jsonl")
    found = [file for one in paths for file in _expand(one, split)]
    return tuple(dict.fromkeys(found))


def member_for(path: Path) -> Source:
    """The kind of source that reads a file, told by its name (a trailing `.gz` apart).

    Raises:
        DataError: no kind reads it, or not with .gz.
    """
    suffix = _suffix(path)
    for member in Source.members():
        if suffix in member.suffixes:
            if path.name.lower().endswith(".gz") and not member.zipped:
                raise DataError(f"{path}: a {suffix} file is packed in itself and cannot be read from .gz; gunzip it")
            return member.model_validate({})
    raise DataError(f"{path}: no reader for {suffix or 'a name without suffix'!r}; {_all_known()}")


def _expand(path: str, split: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_dir():
        return _in_folder(place, split)
    if place.exists():
        member_for(place)
        check_readable(place)
        return [place]
    if glob.has_magic(path):
        matches = [Path(match) for match in sorted(glob.glob(str(place), recursive=True))]
        files = [match for match in matches if match.is_file() and _suffix(match) in _known()]
        if not files:
            raise DataError(f"{path}: the pattern matches no data file; see what `ls {path}` shows")
        for file in files:
            check_readable(file)
        return files
    raise missing(place)


def _in_folder(folder: Path, split: str) -> list[Path]:
    """Data files of one split in a folder; where nothing in it is named after a split, all of them."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Dataset.files(folder, split, SPLIT_NAMES)
    files = sorted(
        file for file in folder.rglob("*") if file.is_file() and _suffix(file) in _known() and not _hidden(file, folder)
    )
    if not files:
        raise DataError(f"{folder}: holds no data file; {_all_known()}")
    named = {file: _split_of(file.relative_to(folder)) for file in files}
    if any(named.values()):
        files = [file for file in files if named[file] == split]
        if not files:
            there = ", ".join(sorted({name for name in named.values() if name}))
            raise DataError(f"{folder}: holds no {split} files, only {there}; give the path of the file you mean")
    for file in files:
        check_readable(file)
    return files


def _split_of(path: Path) -> str | None:
    """The split a file belongs to by the first word of its folder's or its own name."""
    for part in path.parts:
        word = part.lower().split(".")[0].split("-")[0].split("_")[0]
        for split, names in SPLIT_NAMES.items():
            if word in names:
                return split
    return None


def _hidden(file: Path, folder: Path) -> bool:
    """Bookkeeping beside the data: dot files, and the JSON files that tools write about a data set."""
    about = ("dataset_info.json", "dataset_infos.json", "state.json", "README.md")
    return file.name in about or any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _known() -> set[str]:
    return {suffix for member in Source.members() for suffix in member.suffixes}


def _all_known() -> str:
    plain = sorted(suffix for member in Source.members() if not member.zipped for suffix in member.suffixes)
    return f"known are {', '.join(sorted(_known()))}, each but {', '.join(plain)} also with .gz"


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


__all__ = ["Record", "Source", "find_files", "member_for", "open_source"]
