"""The class of a row: a field beside it, its answer, or a field within its answer; of several values the rarest."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tunesmith.base import DataError

from .example import Example

ANSWER = "answer"
"""Name that stands for the reference answer where a row has no such field: the class in a classification."""
NONE = "none"
"""Class of rows that have no value: whose answer lacks the field."""


def values(example: Example, path: str) -> tuple[str, ...]:
    """What a row says of a path, as text; nothing if its answer is no JSON object or lacks the field.

    Args:
        example: the row.
        path: a field beside it (`topic`, `product.kind`), `answer`, or a field within a JSON answer (`answer.role`). A `*` in place of a
            name takes every field, and then `role=program` is a value. A list has each of its entries as a value.

    Raises:
        DataError: the row has no such field beside it.
    """
    head, *parts = (path,) if path in example.meta else path.split(".")
    if head in example.meta:
        tree = example.meta[head]
    elif head == ANSWER:
        tree = _object(example.gold) if parts else example.gold
    else:
        raise DataError(missing(example, path))
    return tuple(dict.fromkeys(f"{name}={value}" if name else value for name, value in facets(tree, parts)))


def facets(tree: Any, parts: Sequence[str], name: str = "") -> Iterator[tuple[str, str]]:
    """Values at a path below a JSON value, each with the name of the field that stands for a `*` in it."""
    if isinstance(tree, list):
        for entry in tree:
            yield from facets(entry, parts, name)
    elif not parts:
        text = tree if isinstance(tree, str) else json.dumps(tree, sort_keys=True, ensure_ascii=False)
        yield _writable(name), _writable(text)
    elif isinstance(tree, dict):
        first, *rest = parts
        for key in tree if first == "*" else {first} & tree.keys():
            yield from facets(tree[key], rest, ".".join(filter(None, (name, key))) if first == "*" else name)


def _writable(text: str) -> str:
    """The same, where JSON inside an answer holds half of a character (`\\ud83d`) with that half still escaped: no file can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()


def missing(example: Example, field: str) -> str:
    """What to tell of a field that a row does not have beside it, or that is null."""
    there = ", ".join(repr(name) for name, value in example.meta.items() if value is not None) or "none"
    what = "null in" if field in example.meta else "no"
    return f"{example.origin}: has {what} field {field!r} to stratify, group or tell classes by; besides prompt and answer it has {there}"


def rarest(held: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The different values of rows, how many rows have each (int64 [V]), and per row (int64 [N]) the number of its rarest; ties go by name."""
    numbers: dict[str, int] = {}
    flat, sizes = array("q"), array("q")
    for each in held:
        found = each or (NONE,)
        flat.extend(numbers.setdefault(value, len(numbers)) for value in found)
        sizes.append(len(found))
    names = list(numbers)
    if not names:
        return names, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    number_F = np.array(flat, dtype=np.int64)
    count_V = np.bincount(number_F)
    order_V = np.array(sorted(range(len(names)), key=lambda number: (count_V[number], names[number])))
    rank_V = np.argsort(order_V)
    starts_N = np.cumsum(sizes) - np.array(sizes)
    return names, count_V, order_V[np.minimum.reduceat(rank_V[number_F], starts_N)]


def _object(text: str) -> Any:
    """The JSON value that a text is, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # an answer in words
        return None
