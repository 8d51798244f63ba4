"""What the prepare stage leaves behind, read back: examples and rows of a split, aligned with each other."""

import json
from pathlib import Path

from tunesmith.base.files import read_json

from .example import Example, Row
from .rows_file import load_rows

SPLITS = ("train", "validation", "test")


def load_examples(folder: Path, split: str) -> list[Example]:
    """The examples of a split, in order."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [Example.from_json(json.loads(line)) for line in file]


def load_split(folder: Path, split: str) -> list[Row]:
    """The rows of a split; row i is example i as tokens."""
    counts = {name: table["rows"] for name, table in read_json(folder / "summary.json")["splits"].items()}
    start = sum(counts[name] for name in SPLITS[: SPLITS.index(split)])
    return load_rows(folder / "rows.safetensors")[start : start + counts[split]]
