"""What the prepare stage leaves behind, read back: examples and rows of a split, aligned with each other."""

import json
from dataclasses import replace
from pathlib import Path

from tunesmith.base import DataError
from tunesmith.base.files import read_json

from .example import Example, Row
from .rows_file import load_rows
from .split import field_value
from .subset import subset

SPLITS = ("train", "validation", "test")


def load_examples(folder: Path, split: str, most: int | None = None) -> list[Example]:
    """The examples of a split, in order.

    Args:
        folder: of the prepare artifact.
        split: train, validation or test.
        most: where there are more, so many of them: of each class its share, the same ones for whoever asks. Files are often in the order of their classes.
    """
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        found = [Example.from_json(json.loads(line)) for line in file]
    if group := read_json(folder / "summary.json").get("group"):
        found = [replace(example, unit=unit(example, group)) for example in found]
    if most is None or most >= len(found):
        return found
    return [found[place] for place in subset(load_split(folder, split), most, 0)]


def rendered_on(folder: Path) -> str | None:
    """What the template took for today when the rows were made, if it tells the date."""
    found: str | None = read_json(folder / "summary.json").get("today")
    return found


def unit(example: Example, group: str) -> str:
    """What a row has in common with others by a field; nothing where it lacks the field, as rows of a file of their own may."""
    try:
        return field_value(example, group)
    except DataError:
        return ""


def load_split(folder: Path, split: str, most: int | None = None) -> list[Row]:
    """The rows of a split; row i is example i as tokens. Arguments as of `load_examples`."""
    counts = {name: table["rows"] for name, table in read_json(folder / "summary.json")["splits"].items()}
    start = sum(counts[name] for name in SPLITS[: SPLITS.index(split)])
    found = load_rows(folder / "rows.safetensors")[start : start + counts[split]]
    return found if most is None or most >= len(found) else [found[place] for place in subset(found, most, 0)]
