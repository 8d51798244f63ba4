"""A folder that the `datasets` library wrote with save_to_disk, read without that library."""

from collections.abc import Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import ClassVar, Literal

from tunesmith.base import DataError
from tunesmith.base.files import read_json

from .parquet import Parquet
from .record import Record, Source
from .text_file import missing


def _plain(folder: Path, name: str) -> str:
    """A name of something in a folder.

    Raises:
        DataError: it leads elsewhere.
    """
    if Path(name).name != name:
        raise DataError(f"{folder}: names {name!r}, which is not in it; save the data set again")
    return name


class Dataset(Source):
    """A saved Dataset (`state.json` and Arrow files) or DatasetDict (`dataset_dict.json` and a folder per split)."""

    kind: Literal["dataset"] = "dataset"
    suffixes: ClassVar[tuple[str, ...]] = ()

    def records(self, path: Path) -> Iterator[Record]:
        """Every row of a saved Dataset's folder."""
        for file in self.files(path, "train", {}):
            yield from Parquet().records(file)

    @classmethod
    def files(cls, folder: Path, split: str, names: Mapping[str, tuple[str, ...]]) -> list[Path]:
        """Arrow files of one split, in the order that the folder states.

        Raises:
            DataError: the split is not there, or the folder is damaged.
        """
        try:
            if (folder / "dataset_dict.json").is_file():
                there = read_json(folder / "dataset_dict.json")["splits"]
                wanted = next(
                    (name for name in there if name in names.get(split, (split,))),
                    there[0] if len(there) == 1 else None,
                )
                if wanted is None:
                    has = f"holds the splits {', '.join(there)} and no {split}"
                    raise DataError(f"{folder}: {has}; write {folder}/{there[0]} to take that one")
                folder = folder / _plain(folder, wanted)
            entries = read_json(folder / "state.json")["_data_files"]
            files = [folder / _plain(folder, entry["filename"]) for entry in entries]
        except FileNotFoundError as error:
            raise missing(Path(error.filename)) from None
        except (KeyError, TypeError, IndexError, JSONDecodeError, RecursionError):
            raise DataError(
                f"{folder}: not a folder that datasets.save_to_disk wrote; save it again, or give its data files"
            ) from None
        for file in files:
            if not file.is_file():
                raise missing(file)
        return files
