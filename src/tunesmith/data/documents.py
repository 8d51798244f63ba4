"""Documents that answers are looked up in, and questions about them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.base import DataError

from .sources import find_files, open_source

TEXTS = (".md", ".txt")
"""Files of a folder that are documents."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document."""

    document: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question with what a right answer says."""

    origin: str
    text: str
    answers: tuple[str, ...]
    """Right answers, any of which will do; the first is the one to learn from."""
    facts: tuple[str, ...] = ()
    """What a complete answer says; without facts, the words of a right answer are taken."""
    document: str | None = None
    """Where the answer stands, if that is known."""


def document_files(path: str) -> tuple[Path, ...]:
    """The files that documents are read from: the .md and .txt files of a folder, or a data file.

    Raises:
        DataError: there is none.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return find_files(path, "documents")
    found = tuple(sorted(file for file in folder.rglob("*") if file.suffix in TEXTS and not _hidden(file, folder)))
    if not found:
        raise DataError(
            f"{path}: holds no document; put .md or .txt files there, or name a .jsonl file of rows with 'text'"
        )
    return found


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def read_passages(path: str, words: int) -> list[Passage]:
    """Every document, cut into passages of about so many words; a file of a folder is called by its name there, a row by its `id`.

    Raises:
        DataError: a row has no text, a file is not UTF-8, two documents have the same name, or none has a word.
    """
    texts: dict[str, str] = {}
    for name, text in _documents(path):
        if name in texts:
            raise DataError(f"{path}: two documents are called {name!r}; give each a name of its own")
        texts[name] = text
    found = [Passage(name, piece) for name, text in texts.items() for piece in pieces(text, words)]
    if not found:
        raise DataError(f"{path}: no document there has a word in it; put the texts there that questions are about")
    return found


def _documents(path: str) -> list[tuple[str, str]]:
    files = document_files(path)
    if Path(path).expanduser().is_dir():
        root = Path(path).expanduser()
        return [(file.relative_to(root).as_posix(), _content(file)) for file in files]
    return [(str(row.get("id", origin)), _text(row, "text", origin)) for origin, row in _rows(path)]


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start:,} is no UTF-8; write the document in UTF-8") from None


def pieces(text: str, words: int) -> list[str]:
    """Paragraphs together up to so many words; a longer one is cut within."""
    found: list[list[str]] = []
    for paragraph in (part for part in re.split(r"\n\s*\n", text) if part.strip()):
        split = paragraph.split()
        for start in range(0, len(split), words):
            part = split[start : start + words]
            if found and len(found[-1]) + len(part) <= words:
                found[-1] += part
            else:
                found.append(part)
    return [" ".join(part) for part in found]


def read_questions(path: str) -> list[Question]:
    """Rows with `question`, `answer` (a text or a list of right ones), and perhaps `facts` (a list) and `document`.

    Raises:
        DataError: a row lacks something, or there are none.
    """
    found = [_question(row, origin) for origin, row in _rows(path)]
    if not found:
        raise DataError(f"{path}: holds no questions; each line needs question and answer")
    return found


def _question(row: dict[str, Any], origin: str) -> Question:
    answers, facts = _texts(row, "answer", origin), _texts(row, "facts", origin) if "facts" in row else ()
    document = row.get("document")
    return Question(
        origin, _text(row, "question", origin), answers, facts, str(document) if document is not None else None
    )


def _rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for record in open_source(path, "documents"):
        if record.value is None:
            raise DataError(f"{record.origin}: {record.defect}")
        found.append((record.origin, record.value))
    return found


def _texts(row: dict[str, Any], name: str, origin: str) -> tuple[str, ...]:
    given = row.get(name)
    if not isinstance(given, list):
        return (_text(row, name, origin),)
    return tuple(_text({name: each}, name, origin) for each in given) or (_text({}, name, origin),)


def _text(row: dict[str, Any], name: str, origin: str) -> str:
    found = row.get(name)
    if not isinstance(found, str | int | float) or not str(found).strip():
        raise DataError(f"{origin}: {name!r} is missing; documents need text, questions need question and answer")
    return str(found)


def about_missing(questions: Sequence[Question], passages: Sequence[Passage]) -> str | None:
    """What is wrong with a question that names a document which is not there; None if nothing is."""
    names = {passage.document for passage in passages}
    odd = next((each for each in questions if each.document is not None and each.document not in names), None)
    if odd is None:
        return None
    return f"{odd.origin}: there is no document {odd.document!r}; name one of {', '.join(sorted(names)[:5])}, or leave document out"
