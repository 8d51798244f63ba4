"""The request log: what was asked, answered and how long it took, in one SQLite file that the monitor reads."""

import json
import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from tunesmith.base import ArtifactError
from tunesmith.base.secrets import KINDS, MARK, from_environment

from .settings import RequestLogging

logger = logging.getLogger(__name__)

REDACTED = (
    r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",  # e-mail addresses
    r"\b(?:sk|pk|rk|hf|gh[opsu]|github_pat|glpat|xox[abprs]|AKIA|AIza)[-_]?[A-Za-z0-9_-]{16,256}",  # keys of services
    *KINDS.values(),
    r"(?<!\w)\+\d{1,3}(?:[ ./-]?\(?\d{1,12}+\)?+){1,6}+(?!\w)",  # phone numbers: international,
    r"(?<!\w)(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)",  # North American,
    r"(?<!\w)\(?0\d{2,4}\)?[ /-]\d{3,8}(?:[ -]\d{2,6}){0,3}(?!\w)",  # and with a trunk 0
)
"""What is always taken out of stored text. Every repetition is bounded, and where one could be read in many ways it takes all it can, so the time is linear in the text."""
PRUNE_EVERY = 1_000
PRUNE_SECONDS = 3_600.0
"""Old requests go after so many new ones, or after so long."""
CLIENT_LEFT = 499
"""Status of a request whose client did not wait for the answer."""


@dataclass(frozen=True)
class Record:
    """One prompt of one request."""

    route: str
    """`chat` or `completions`."""
    model: str
    status: int
    """HTTP status; 499 if the client left."""
    time: float = 0.0
    """Arrival, seconds since 1970."""
    seconds: float = 0.0
    """From arrival to the last token."""
    first_seconds: float | None = None
    """From arrival to the first token."""
    prompt: str | None = None
    """The messages' contents joined by newlines, or the text to continue; None if text is not kept."""
    answer: str | None = None
    """The first choice."""
    prompt_characters: int = 0
    answer_characters: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Over all choices."""
    finish: str | None = None
    """`stop` or `length`."""
    is_json: bool | None = None
    """Whether the answer, as a whole, is a JSON object or list; None without an answer."""
    error: str | None = None
    artifact: str | None = None
    """Folder name of the deployed artifact that was served at the time; of several runs all of them. None where the log does not say."""


_COLUMNS = tuple(column.name for column in fields(Record))
_ADDED = ("artifact",)
"""Columns that logs lack which were begun before there were these; they hold text."""
_INTEGER = ("status", "prompt_characters", "answer_characters", "prompt_tokens", "answer_tokens", "is_json")
_REAL = ("time", "seconds", "first_seconds")
_TYPED = (f"{name} {'integer' if name in _INTEGER else 'real' if name in _REAL else 'text'}" for name in _COLUMNS)
_SCHEMA = f"""
create table if not exists requests (id integer primary key, {", ".join(_TYPED)}) strict;
create index if not exists requests_time on requests (time);
create table if not exists keeping (only_row integer primary key check (only_row = 1), settings text not null) strict;
"""


class Redactor:
    """Shortens texts and takes out what must not be stored."""

    def __init__(self, keeping: RequestLogging) -> None:
        self.limit = keeping.text_limit
        self.known = from_environment()
        self.patterns = [re.compile(pattern) for pattern in (*keeping.redact, *REDACTED)]

    def __call__(self, text: str) -> str:
        for value in self.known:
            text = text.replace(value, MARK)
        for pattern in self.patterns:
            text = pattern.sub(MARK, text)
        return text[: self.limit]


class RequestLog:
    """Writes records in a thread of its own, so that neither a slow disk nor a slow pattern holds up an answer.

    Args:
        path: the SQLite file; it is made, or gone on with.
        keeping: what is kept of a request.
        artifact: what is served, as each record is to say.

    Raises:
        ArtifactError: the file cannot be opened or is not a request log.
    """

    def __init__(self, path: Path, keeping: RequestLogging, artifact: str | None = None) -> None:
        self.path, self.artifact = path, artifact
        self.keeping = keeping
        self._redact = Redactor(keeping)
        self._writer = ThreadPoolExecutor(1, "request-log")
        self._written = 0
        self._file = _open(path, write=True)
        with self._file:
            self._file.executescript(_SCHEMA)
            for column in _lacking(self._file):
                self._file.execute(f"alter table requests add column {column} text")
            self._file.execute("insert or replace into keeping values (1, ?)", (keeping.model_dump_json(),))
        self._prune()

    def write(self, record: Record) -> None:
        """Queue a record; a failure to write is reported in the program's log and loses this record only."""
        self._writer.submit(self._insert, record).add_done_callback(_report)

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._writer.shutdown()
        self._file.close()

    def _insert(self, record: Record) -> None:
        kept = asdict(record)
        for name in ("model", "prompt", "answer", "error"):
            kept[name] = None if kept[name] is None else self._redact(kept[name])
        kept["artifact"] = self.artifact
        if not self.keeping.text:
            kept["prompt"] = kept["answer"] = None
        marks = ", ".join("?" for _ in _COLUMNS)
        with self._file:
            self._file.execute(
                f"insert into requests ({', '.join(_COLUMNS)}) values ({marks})", astuple(Record(**kept))
            )
        self._written += 1
        if self._written % PRUNE_EVERY == 0 or time.monotonic() - self._pruned > PRUNE_SECONDS:
            self._prune()

    def _prune(self) -> None:
        """Drop what is too old or too much."""
        self._pruned = time.monotonic()
        with self._file:
            self._file.execute("delete from requests where time < ?", (time.time() - self.keeping.days * 86_400,))
            self._file.execute(
                "delete from requests where id <= (select max(id) from requests) - ?", (self.keeping.rows,)
            )


def read_log(path: Path, model: str | None = None, artifact: str | None = None, newest: int = -1) -> Iterator[Record]:
    """Records of a log, oldest first.

    Args:
        path: the SQLite file; a server may be writing to it.
        model: only requests of the model of this name.
        artifact: only those that came while this artifact was served.
        newest: at most so many, the newest ones; -1 is all.

    Raises:
        ArtifactError: the file is missing or is not a request log.
    """
    columns = ", ".join(_COLUMNS)
    chosen = "select * from _ where ifnull(model = ?, 1) and ifnull(artifact = ?, ? is null) order by id desc limit ?"
    asked = (model, artifact, artifact, newest)
    for row in _rows(path, f"select {columns} from ({chosen}) order by id", asked):
        values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
        values["is_json"] = None if values["is_json"] is None else bool(values["is_json"])
        yield Record(**values)


def count_others(path: Path, artifact: str, model: str | None = None) -> tuple[int, int]:
    """Records that came while another artifact was served, and those of which the log does not say what was.

    Raises:
        ArtifactError: as `read_log`.
    """
    counted = "select total(artifact != ?), total(artifact is null) from _ where ifnull(model = ?, 1)"
    ((another, unknown),) = _rows(path, counted, (artifact, model))
    return int(another), int(unknown)


def _rows(path: Path, query: str, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """What a query finds among the requests, which it calls `_`; columns that an older log lacks are null.

    Raises:
        ArtifactError: the file is missing or is not a request log.
    """
    with closing(_open(path, write=False)) as file:
        try:
            lacking = "".join(f", null as {column}" for column in _lacking(file))
            yield from file.execute(f"with _ as (select *{lacking} from requests) {query}", values)
        except sqlite3.DatabaseError as error:
            raise ArtifactError(f"{path}: not a request log ({error}); give the file that the server writes") from None


def _lacking(file: sqlite3.Connection) -> list[str]:
    """Columns that a log does not have because it is older than they are."""
    there = {name for _, name, *_ in file.execute("pragma table_info(requests)")}
    return [column for column in _ADDED if column not in there]


def read_keeping(path: Path) -> RequestLogging:
    """The settings under which a log was written last, so that other texts can be treated as its own were."""
    with closing(_open(path, write=False)) as file:
        try:
            (text,) = file.execute("select settings from keeping").fetchone()
        except (sqlite3.DatabaseError, TypeError) as error:
            raise ArtifactError(f"{path}: not a request log ({error}); give the file that the server writes") from None
    return RequestLogging.model_validate_json(text)


def settle(path: Path) -> None:
    """Move what SQLite's write-ahead file holds into the log itself, so that its bytes can be hashed or copied.

    Raises:
        ArtifactError: the file is missing or is not a request log.
    """
    read_keeping(path)
    with closing(_open(path, write=True)) as file:
        file.execute("pragma wal_checkpoint(truncate)")


def is_json(answer: str) -> bool:
    """Whether a text is one JSON object or list and nothing else."""
    try:
        return isinstance(json.loads(answer), dict | list)
    except (ValueError, RecursionError):
        return False


def _open(path: Path, write: bool) -> sqlite3.Connection:
    mode = "rwc" if write else "ro"
    if write and path.is_symlink():
        raise ArtifactError(f"{path}: is a link, which is not written through; give the file itself")
    try:
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, check_same_thread=False, timeout=30)
        if write:
            file.execute("pragma journal_mode = wal")
            file.execute("pragma synchronous = normal")
            file.execute("pragma secure_delete = on")  # what is deleted leaves no bytes, however SQLite was built
        file.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error as error:
        why = "missing" if not path.exists() else str(error)
        raise ArtifactError(f"{path}: cannot be opened as a request log ({why}); give another path") from None
    return file


def _report(write: "Future[None]") -> None:
    error = write.exception()
    if error is not None:
        logger.error("a request was not logged: %s", error)
