"""The one append-only record of what happened in a run: a JSON object a line in `events.jsonl`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Events:
    """Writes events; every tracker (TensorBoard, MLflow, the report) is a reader of the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time in seconds since 1970; a crash loses at most the line being written."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        with self.path.open("a+b") as file:
            torn = file.tell() > 0 and file.seek(-1, 2) is not None and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")

    def read(self, event: str | None = None) -> Iterator[dict[str, Any]]:
        """Every event in order, or those of one name; a line torn by a crash is passed over."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    found = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if event is None or found["event"] == event:
                    yield found
