"""The one append-only record of what happened in a run: a JSON object a line in `events.jsonl`."""

import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import room


class Events:
    """Writes events; every tracker (TensorBoard, MLflow, the report) is a reader of the same file."""

    def __init__(self, path: Path, **tags: Any) -> None:
        self.path, self.tags = path, tags

    def tagged(self, **tags: Any) -> "Events":
        """The same file, seen as the events with these fields; what is written through it gets them."""
        return Events(self.path, **self.tags, **tags)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time in seconds since 1970; a crash loses at most the line being written."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **self.tags, **fields}, ensure_ascii=False)
        with room(self.path, len(line)), self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # on a file system of several machines, appending alone may overwrite
            torn = file.seek(0, 2) > 0 and file.seek(-1, 2) is not None and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")

    def read(self, event: str | None = None) -> Iterator[dict[str, Any]]:
        """Every event in order, or those of one name; a line torn by a crash is passed over."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                found = _event(line)
                wanted = self.tags if event is None else {"event": event, **self.tags}
                if found is not None and all(found.get(name) == value for name, value in wanted.items()):
                    yield found

    @property
    def spent(self) -> float:
        """Seconds that attempts at an artifact took since it was last done, as far as its events tell."""
        spent, begun, last = 0.0, None, 0.0
        for event in self.read():
            if event["event"] in ("started", "done"):
                spent = 0.0 if event["event"] == "done" else spent + (last - begun if begun is not None else 0.0)
                begun = event["time"] if event["event"] == "started" else None
            last = event["time"]
        return spent + (last - begun if begun is not None else 0.0)

    def since(self, offset: int) -> Iterator[dict[str, Any]]:
        """Whole lines from a byte offset on; each event carries the `offset` to go on from."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                found = _event(line)
                if found is not None:
                    yield {**found, "offset": offset}


def _event(line: str | bytes) -> dict[str, Any] | None:
    """What a line says; None where a crash or someone else left something that is no event."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or cut within a character
        return None
    return found if isinstance(found, dict) else None
