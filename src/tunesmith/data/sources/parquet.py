"""Parquet and Arrow tables, read by pyarrow a batch of rows at a time."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from tunesmith.base import DataError
from tunesmith.base.extras import extra

from .record import Record, Source, checked, plain


class Parquet(Source):
    """A Parquet file, or an Arrow file of either form (stream or file)."""

    kind: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".arrow", ".feather")
    zipped: ClassVar[bool] = False

    def records(self, path: Path) -> Iterator[Record]:
        """One record per row, by its number from 1; null fields are left out."""
        number = 0
        for batch in _batches(path):
            for row in batch:
                number += 1
                if row is None:
                    yield Record(
                        f"{path}:{number}", None, "not valid UTF-8: text in the table was stored in another encoding"
                    )
                    continue
                fields = {name: plain(value) for name, value in row.items() if value is not None}
                yield checked(f"{path}:{number}", fields)


Rows = list[dict[str, Any] | None]
"""Rows of a table; None where text in one cannot be read."""


def _batches(path: Path) -> Iterator[Rows]:
    arrow = extra("pyarrow", "data", "reading Parquet and Arrow files")
    try:
        if path.suffix.lower() == ".parquet":
            for batch in import_module("pyarrow.parquet").ParquetFile(path).iter_batches(batch_size=1000):
                yield _rows(batch)
            return
        with arrow.memory_map(str(path)) as file:
            stream = file.read(6) != b"ARROW1"
            file.seek(0)
            reader = arrow.ipc.open_stream(file) if stream else arrow.ipc.open_file(file)
            for batch in reader if stream else map(reader.get_batch, range(reader.num_record_batches)):
                yield _rows(batch)
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also of dates Python does not know
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: cannot be read as {path.suffix[1:].lower()} ({why}); is it whole, and of that format?"
        ) from None


def _rows(batch: Any) -> Rows:
    """The rows of a batch, which is checked first: a damaged file may say that its texts end where there is no memory."""
    try:
        batch.validate(full=True)
        return cast(Rows, batch.to_pylist())
    except ValueError as error:  # pyarrow's own for what is not valid is one
        if "utf8" not in str(error).lower().replace("-", ""):
            raise
        if len(batch) == 1:
            return [None]
        half = len(batch) // 2
        return [*_rows(batch.slice(0, half)), *_rows(batch.slice(half))]
