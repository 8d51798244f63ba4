"""Rows on disk: one safetensors file, written a row at a time, with origins and columns beside it as JSON."""

import json
from array import array
from collections.abc import Iterable
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file

from tunesmith.base.files import read_json

from .example import Row, Sequence


class RowWriter:
    """Rows as they come, each written at once; the files are complete when the `with` block ends without an error."""

    def __init__(self, path: Path) -> None:
        """Write to `path` (.safetensors) and the same name with .json."""
        self.path = path
        self.lengths, self.sequences = array("i"), array("i")
        self._tokens, self._learn = (TemporaryFile(dir=path.parent) for _ in range(2))  # noqa: SIM115  closed by __exit__
        self._facts = path.with_suffix(".json").open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def add(self, row: Row) -> None:
        """Write a row behind the last."""
        for sequence in row.sequences:
            self._tokens.write(sequence.tokens.astype(np.int32, copy=False).tobytes())
            self._learn.write(sequence.learn.astype(np.uint8, copy=False).tobytes())
            self.lengths.append(len(sequence))
        fact = json.dumps(
            {"origin": row.origin, "columns": dict(row.columns), "classes": row.classes}, ensure_ascii=False
        )
        self._facts.write(f"{',' if self.sequences else '['}\n{fact}")
        self.sequences.append(len(row.sequences))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._tokens, self._learn, self._facts:
            if error is None:
                self._facts.write("\n]\n" if self.sequences else "[]\n")
                self._finish()

    def _finish(self) -> None:
        total = self._tokens.tell() // 4
        parts = {"lengths": ("I32", len(self.lengths)), "sequences": ("I32", len(self.sequences))}
        parts |= {"tokens": ("I32", total), "learn": ("U8", total)}
        with self.path.open("wb") as file:
            file.write(_header(parts))
            file.write(self.lengths.tobytes() + self.sequences.tobytes())
            for held in (self._tokens, self._learn):
                held.seek(0)
                copyfileobj(held, file)


def _header(parts: dict[str, tuple[str, int]]) -> bytes:
    """What a safetensors file opens with: its length as 8 bytes, then names, types, shapes and places as JSON, padded to 8 bytes."""
    described: dict[str, Any] = {}
    end = 0
    for name, (kind, count) in parts.items():
        start, end = end, end + count * {"I32": 4, "U8": 1}[kind]
        described[name] = {"dtype": kind, "shape": [count], "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def save_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as one safetensors file; origins and columns go beside it as JSON."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.add(row)


def load_rows(path: Path) -> list[Row]:
    """The rows that `save_rows` wrote."""
    tensors = load_file(path)
    facts = read_json(path.with_suffix(".json"))
    ends = np.cumsum(tensors["lengths"])[:-1]
    tokens, learn = np.split(tensors["tokens"], ends), np.split(tensors["learn"].astype(bool), ends)
    rows, at = [], 0
    for fact, count in zip(facts, tensors["sequences"], strict=True):
        sequences = tuple(Sequence(tokens[number], learn[number]) for number in range(at, at + int(count)))
        rows.append(Row(fact["origin"], sequences, fact["columns"], tuple(fact.get("classes", ()))))
        at += int(count)
    return rows
