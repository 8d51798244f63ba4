"""Files of every kind in which malformed rows stand among good ones, and where they stand."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from malformed import FORMS, INVISIBLE, LONGER, Bad, Value, corpus, good


@dataclass(frozen=True)
class Hidden:
    """A file of one kind and format, and its malformed rows by `file:line`."""

    path: Path
    places: dict[str, Bad]
    good: int
    """How many good rows it holds."""


def shuffled(form: str, bad: Sequence[Any], count: int) -> list[Any]:
    """Good rows as records, with the bad ones at random among them."""
    rows: list[Any] = [*(good(form, number) for number in range(count)), *bad]
    random.Random(form).shuffle(rows)
    return rows


def json_lines(folder: Path, form: str, count: int) -> Hidden:
    """JSON lines, where every damage can be put."""
    path, places, number = folder / "rows.jsonl", {}, 1
    lines = []
    for one in shuffled(form, corpus(form), count):
        line = one.line if isinstance(one, Bad) else json.dumps(one).encode()
        if isinstance(one, Bad):
            places[f"{path}:{number}"] = one
        number += line.count(b"\n") + 1
        lines.append(line + b"\n")
    path.write_bytes(b"".join(lines))
    return Hidden(path, places, count)


def json_list(folder: Path, form: str, count: int) -> Hidden:
    """One list of objects, with those rows that are JSON."""
    path, places = folder / "rows.json", {}
    rows = shuffled(form, [one for one in corpus(form) if _is_json(one)], count)
    for number, one in enumerate(rows, 2):
        if isinstance(one, Bad):
            places[f"{path}:{number}"] = one
    lines = [one.line if isinstance(one, Bad) else json.dumps(one).encode() for one in rows]
    path.write_bytes(b"[\n" + b",\n".join(lines) + b"\n]\n")
    return Hidden(path, places, count)


def _is_json(one: Bad) -> bool:
    """Whether a list can hold it. What stops the whole file is tried with files of their own."""
    try:
        json.loads(one.line.decode())
    except (ValueError, RecursionError):
        return False
    return not any(word in one.name for word in ("twice", "1e999", "NaN", "Infinity", "escapes"))


def table(folder: Path, form: str, count: int) -> Hidden:
    """Comma-separated values: cells that a format cannot use, and lines that are no rows of the table."""
    path, names = folder / "rows.csv", list(good(form, 0))
    whole, first = _cells(good(form, 4242)), names[0]
    found = {
        f"{name} is {what}": ({**whole, name: cell}, name)
        for name in names if (form, name) != ("alpaca", "input") for what, cell in CELLS.items()
        if len(names) > 1 or cell.strip()  # a blank line is no row
    } if form not in ("messages", "sharegpt") else {}  # fmt: skip
    found |= {
        one.name: (_cells(one.value), one.field) for one in corpus(form) if _fits_cells(one.value) and not one.legal
    }
    bad = [Bad(what, _line([row.get(name, "") for name in names]), field) for what, (row, field) in found.items()]
    line = _line([whole[name] for name in names])
    bad += [Bad(what, made, field) for what, (made, field) in {
        "a field too many": (line + b",more", "fields"), "the header again": (",".join(names).encode(), "header"),
        "a lone byte": (line.replace(b"Shade", b"\x80"), "UTF-8"), "text behind a quote": (b'"Shade" 5' + line, "CSV"),
        "too long": (_line([cell.replace("Shade", "a" * LONGER) for cell in (whole[name] for name in names)]), first),
        **({"a field too few": (_line([whole[name] for name in names][1:]), "fields")} if len(names) > 1 else {}),
    }.items()]  # fmt: skip
    places, number = {}, 2
    lines = [",".join(names).encode()]
    for one in shuffled(form, bad, count):
        lines.append(one.line if isinstance(one, Bad) else _line([_cells(one)[name] for name in names]))
        if isinstance(one, Bad):
            places[f"{path}:{number}"] = one
        number += lines[-1].count(b"\n") + 1
    path.write_bytes(b"\n".join(lines) + b"\n")
    return Hidden(path, places, count)


CELLS = {"missing": "", "blank": " \t", "invisible": INVISIBLE, "NUL": "a\0b"}


def _cells(value: Value) -> dict[str, str]:
    return {name: part if isinstance(part, str) else json.dumps(part) for name, part in value.items()}


def _fits_cells(value: Value | None) -> bool:
    """Whether a table says the same: its cells are text, and what is nested in them JSON."""
    return value is not None and not value.keys() - {"messages", "conversations", "topic"} and "topic" not in value and None not in value.values()  # fmt: skip


def _line(cells: Sequence[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue().encode("utf-8", "surrogatepass") or b'""'


def columns(folder: Path, form: str, count: int) -> Hidden:
    """Parquet: a column has one type, so what can be wrong is a cell."""
    path, names = folder / "rows.parquet", list(good(form, 0))
    chat = form in ("messages", "sharegpt")
    if chat:
        keep = ("role", "content") if form == "messages" else ("from", "value")
        bad = [one for one in corpus(form) if one.value and _is_chat(one.value[names[0]], keep) and len(one.value) == 1]
    else:
        whole = good(form, 4242)
        cells = {**CELLS, "missing": None, "too long": "a" * LONGER}
        bad = [
            Bad(f"{name} is {what}", b"", "field" if (len(names), cell) == (1, None) else name, {**whole, name: cell})
            for name in names if isinstance(whole[name], str) and (form, name) != ("alpaca", "input") for what, cell in cells.items()
        ]  # fmt: skip
        if "label" in names:
            bad.append(Bad("label is missing", b"", "label", {**whole, "label": None}))
    rows = shuffled(form, bad, count)
    pq.write_table(pa.Table.from_pylist([one.value if isinstance(one, Bad) else one for one in rows]), path)
    return Hidden(path, {f"{path}:{number}": one for number, one in enumerate(rows, 1) if isinstance(one, Bad)}, count)


def _is_chat(turns: Any, keep: tuple[str, str]) -> bool:
    return isinstance(turns, list) and all(
        isinstance(turn, dict) and turn.keys() <= set(keep) and all(isinstance(part, str | None) for part in turn.values()) for turn in turns
    )  # fmt: skip


def lists_of_cells(folder: Path, form: str, count: int) -> Hidden:
    """JSON of columns: one object with a list for each field, in which cells may be of any type but an object, by which it is told from one row."""
    path, names, whole = folder / "rows.columns.json", list(good(form, 0)), good(form, 4242)
    bad = [
        one for one in corpus(form)
        if one.value and one.value.keys() == whole.keys() and not any(isinstance(cell, dict) for cell in one.value.values())
    ]  # fmt: skip
    cells = {"NUL": "a\0b", "half a surrogate pair": "\ud83d", "too long": "a" * LONGER}
    bad += [
        Bad(f"{name} is {what}", b"", name, {**whole, name: cell})
        for name in names if isinstance(whole[name], str) for what, cell in cells.items()
    ]  # fmt: skip
    rows = shuffled(form, bad, count)
    values = [one.value if isinstance(one, Bad) else one for one in rows]
    path.write_text(json.dumps({name: [value[name] for value in values] for name in names}))
    return Hidden(path, {f"{path}:{number}": one for number, one in enumerate(rows, 1) if isinstance(one, Bad)}, count)


def bytes_in_columns(folder: Path, form: str, count: int) -> Hidden:
    """Parquet in which text was stored as raw bytes, or in another encoding."""
    path = folder / "raw.parquet"
    texts = [f"Shade {number}?".encode() for number in range(count)]
    texts.insert(count // 2, b"Sch\xf6n?")
    stored = pa.array(texts, pa.binary())
    asked = pa.Array.from_buffers(pa.string(), len(stored), stored.buffers())
    answers = [f"red {number}" for number in range(count + 1)]
    pq.write_table(pa.table({"prompt": asked, "completion": answers}), path)
    return Hidden(path, {f"{path}:{count // 2 + 1}": Bad("Latin-1 in a column of text", b"", "UTF-8")}, count)


def text(folder: Path, form: str, count: int) -> Hidden:
    """Plain text, a row each line."""
    path, places = folder / "rows.txt", {}
    bad = [
        Bad("a lone byte", b"Shade \x80?"), Bad("Latin-1", b"Sch\xf6n?"), Bad("NUL", b"a\0b"), Bad("UTF-16", "Shade?".encode("utf-16")),
        Bad("too long", b"a" * LONGER), Bad("far too long", b"a" * 9 * LONGER), Bad("invisible", INVISIBLE.encode()),
    ]  # fmt: skip
    rows = shuffled(form, bad, count)
    for number, one in enumerate(rows, 1):
        if isinstance(one, Bad):
            places[f"{path}:{number}"] = one
    path.write_bytes(b"".join((one.line if isinstance(one, Bad) else one["text"].encode()) + b"\n" for one in rows))
    return Hidden(path, places, count)


FLAT = tuple(form for form in FORMS if form != "sharegpt")
CELLED = ("prompt_completion", "alpaca", "preference", "kto")
KINDS: tuple[tuple[Callable[[Path, str, int], Hidden], tuple[str, ...]], ...] = (
    (json_lines, FORMS), (json_list, FORMS), (table, FLAT), (columns, FORMS), (lists_of_cells, CELLED), (bytes_in_columns, ("prompt_completion",)), (text, ("text",)),
)  # fmt: skip
"""Every kind of file, with the formats that can be written in it."""


def whole_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are damaged as a whole, and what has to be said of each."""
    rows = "".join(json.dumps(good("messages", number)) + "\n" for number in range(9))
    given: dict[str, tuple[str, bytes, str]] = {
        "UTF-16": ("a.jsonl", rows.encode("utf-16"), "UTF-16"), "UTF-16 of the other order": ("b.jsonl", b"\xfe\xff" + rows.encode("utf-16-be"), "UTF-16"),
        "UTF-32": ("c.jsonl", rows.encode("utf-32"), "UTF-16"), "UTF-16 without a mark": ("d.jsonl", rows.encode("utf-16-le"), ":1: holds a NUL"),
        "carriage returns alone": ("e.jsonl", rows.replace("\n", "\r").encode(), ":1: two objects"), "cut gzip": ("f.jsonl.gz", gzip.compress(rows.encode())[:-20], "cut short"),
        "nothing": ("g.jsonl", b"", "no rows"), "only a byte order mark": ("h.jsonl", b"\xef\xbb\xbf", "no rows"), "a pointer": ("i.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        "a list that does not end": ("j.json", b"[" + rows.strip().replace("\n", ",\n").encode(), ":9: "), "a list with a damaged row": ("k.json", b'[\n{"prompt": "a", "answer": "b"},\n{"prompt": "a" "answer"}]', ":3: "),
        "a number": ("l.json", b"42", "a number"), "a string": ("m.json", b'"red"', "text"), "null": ("n.json", b"null", "null"), "HTML": ("o.json", b"<html>", ":1: not valid JSON"),
        "1e999 in a list": ("p.json", b'[{"prompt": "a", "answer": 1e999}]', ":1: "), "5,000 digits in a list": ("q.json", b'[{"prompt": "a", "n": %s}]' % (b"9" * 5000), ":1: "),
        "a table with carriage returns alone": ("z.csv", b"prompt,answer\ra,b\rc,d\r", ":1: the header"),
        "an open quote": ("r.csv", b'prompt,answer\na,b\n"a,b\na,b\n', ":3: "), "a column twice": ("s.csv", b"prompt,prompt\na,b\n", ":1: "), "only a header": ("t.csv", b"prompt,answer\n", "no rows"),
        "no Parquet": ("u.parquet", b"PAR1 and then nothing", "parquet"), "cut Parquet": ("v.parquet", _parquet()[:-9], "parquet"), "no Arrow": ("w.arrow", b"ARROW1", "arrow"),
        "raw bytes in a column": ("x.parquet", _parquet(b"Shade?"), "'prompt' is not text"), "a key twice in a list": ("y.json", b'[{"prompt": "a", "prompt": "b"}]', ":1: a key is given twice"),
    }  # fmt: skip
    found = {}
    for what, (name, content, said) in given.items():
        (folder / name).write_bytes(content)
        found[what] = (folder / name, said)
    return found


def _parquet(asked: str | bytes = "Shade?") -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"prompt": [asked] * 9, "completion": [f"red {number}" for number in range(9)]}), out)
    return out.getvalue()
