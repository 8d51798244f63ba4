"""Files of every kind give the same rows, and a bad line is a reason, never an error."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import DataError, MachineError
from tunesmith.data.sources import Record, find_files, open_source
from tunesmith.data.sources.jsonl import Jsonl

ROWS = [{"prompt": f"question {number}", "answer": f"Antwort „{number}“ 😀"} for number in range(3)]


def values(records: list[Record]) -> list[object]:
    return [record.value for record in records]


def write_table(path: Path, columns: tuple[str, ...] = ("prompt", "answer"), mark: str = ",") -> Path:
    lines = [mark.join(columns), *(mark.join(row[name] for name in columns) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def save_arrow(folder: Path, rows: list[dict[str, str]]) -> None:
    """What `datasets.Dataset.save_to_disk` leaves: an Arrow stream and a state file that names it."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(ROWS), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "c.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "d.json").write_text(jsonl(ROWS), encoding="utf-8")
    (tmp_path / "e.json").write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))
    write_table(tmp_path / "f.csv")
    write_table(tmp_path / "g.csv", mark=";")
    write_table(tmp_path / "h.tsv", mark="\t")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "i.parquet")
    shutil.copy(tmp_path / "i.parquet", tmp_path / "i.PARQUET")
    shutil.copy(tmp_path / "f.csv", tmp_path / "f.CSV")
    (tmp_path / "j.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS).encode()))
    (tmp_path / "k.csv.gz").write_bytes(gzip.compress((tmp_path / "f.csv").read_bytes()))
    save_arrow(tmp_path / "saved", ROWS)
    for path in (*sorted(file for file in tmp_path.iterdir() if file.is_file()), tmp_path / "saved"):
        assert values(list(open_source(str(path)))) == ROWS, path.name


def test_rows_in_a_field_of_a_json_object_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = '[{"a": 1}, {"a": "]}"},\n\n {"a":\n 3}]'
    path.write_text('{"about": {"data": [1, 2], "x": "\\"}"},\n "data" :\n  ' + rows + ', "version": 2\n}\n')
    records = list(open_source(str(path)))
    assert [record.value["a"] for record in records] == [1, "]}", 3]
    assert [record.origin for record in records] == [f"{path}:3", f"{path}:3:2", f"{path}:5"]
    assert records[0].note == "rows were read from the field 'data'"


def test_origin_is_the_line_where_the_row_begins(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "b.json").write_text('[\n {"a":\n  1},\n\n {"a": 2}]')
    (tmp_path / "c.csv").write_text('a,b\n1,"two\nlines"\n3,4\n')
    (tmp_path / "d.txt").write_text("one\nstill one\n\n\ntwo\n")
    for name, expected in {"a.jsonl": [2, 4], "b.json": [2, 5], "c.csv": [2, 4], "d.txt": [1, 5]}.items():
        path = tmp_path / name
        assert [record.origin for record in open_source(str(path))] == [f"{path}:{line}" for line in expected]


BAD_LINES = {
    b'{"a": ': "not valid JSON: the line is cut short",
    b'{"a": 1}{"a": 2}': "two objects on one line",
    b'{"a": 1} {"a": 2}': "two objects on one line",
    b'{"a": 1} x': "not valid JSON: 'x' stands behind",
    b'{"a": "\x00"}': "holds a NUL",
    b'{"a": "\\u0000"}': "holds a NUL",
    b'{"a": "\xff"}': "not valid UTF-8: byte 0xff",
    b'{"a": "\\ud800"}': "holds a lone surrogate: field 'a'",
    b'{"\\ud800": "a"}': "holds a lone surrogate",
    b'{"a": {"b": ["x", "\\udfff"]}}': "holds a lone surrogate: field 'a.b.1'",
    b'{"a": 1, "a": 2}': "a key is given twice: 'a'",
    b'{"a": {"b": 1, "b": 1}}': "a key is given twice: 'b'",
    b"[1, 2]": "not an object: it is a list",
    b'"text"': "not an object: it is text",
    b"null": "not an object: it is null",
    b"{}": "an empty object",
    b'{"a": NaN}': "not valid JSON: NaN",
    b"{'a': 1}": "not valid JSON: it uses single quotes",
    b'{"a": "' + b"x" * 1_000_001 + b'"}': "too long",
    b'{"a": "' + b"x" * 9_000_000 + b'"}': "too long",
    b'{"a": ' + b"[" * 200_000 + b"}": "nested too deep",
    b'{"a": ' + b"9" * 5_000 + b"}": "not valid JSON",
    b"[": "not one object per line",
    b'{"a": 1},': "not one object per line",
    b'{"a": 1\xe2\x80': "not valid UTF-8",
}


def test_a_malformed_line_is_a_record_with_a_reason_and_its_neighbours_are_read(tmp_path: Path) -> None:
    good = b'{"a": "good"}\n'
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"".join(good + line + b"\n" for line in BAD_LINES) + good)
    records = list(open_source(str(path)))
    assert [record.value for record in records[::2]] == [{"a": "good"}] * (len(BAD_LINES) + 1)
    for number, (record, reason) in enumerate(zip(records[1::2], BAD_LINES.values(), strict=True)):
        assert record.defect is not None
        assert record.defect.startswith(reason)
        assert record.value is None
        assert record.origin == f"{path}:{2 * number + 2}"
        assert len(record.defect) < 200


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_make_the_reader_raise(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("bytes") / "any.jsonl"
    path.write_bytes(b"x" + b"\n".join(lines))
    for record in Jsonl().records(path):
        assert (record.value is None) == (record.defect is not None)


@given(
    st.lists(
        st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none(), min_size=1), min_size=1, max_size=5
    )
)
def test_what_json_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for record, row in zip(open_source(str(path)), rows, strict=True):
        assert record.value == row or "NUL" in str(record.defect)


def test_a_byte_order_mark_is_removed_and_stated(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": '{"a": "1"}\n', "b.json": '[{"a": "1"}]', "c.csv": "a\n1\n"}.items():
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        (record,) = open_source(str(tmp_path / name))
        assert record.value == {"a": "1"}
        assert "byte order mark" in str(record.note)


def test_table_rows_with_a_wrong_number_of_fields_or_bytes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,2\n1,2,3\n\xff,2\n5,6\n")
    records = list(open_source(str(path)))
    assert [record.value is not None for record in records] == [True, False, False, True]
    assert records[1].defect == "wrong number of fields: 3, and the header names 2"
    assert "UTF-8" in str(records[2].defect)
    path.write_text('a,b\n1,2\n3,"never closed\n5,6\n')
    with pytest.raises(DataError, match=r"t\.csv:3: a quote is opened"):
        list(open_source(str(path)))


def test_folders_pick_the_split_and_bookkeeping_is_no_data(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_arrow(tmp_path / "dict" / split, [{"prompt": split, "answer": "x"}])
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    plain = tmp_path / "plain"
    plain.mkdir()
    for split in ("train", "test"):
        (plain / f"{split}-00000.jsonl").write_text(jsonl([{"prompt": split, "answer": "x"}]))
    (plain / "dataset_info.json").write_text("{}")
    for folder in (tmp_path / "dict", plain):
        for split in ("train", "test"):
            assert values(list(open_source(str(folder), split))) == [{"prompt": split, "answer": "x"}]
        with pytest.raises(DataError, match="validation"):
            find_files(str(folder), "validation")
    assert values(list(open_source(str(tmp_path / "dict" / "test")))) == [{"prompt": "test", "answer": "x"}]


def test_globs_and_lists_are_read_in_order_each_file_once(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"file": name}))
    pattern = str(tmp_path / "*.jsonl")
    assert values(list(open_source(pattern))) == [{"file": "a"}, {"file": "b"}]
    assert values(list(open_source([str(tmp_path / "b.jsonl"), pattern]))) == [{"file": "b"}, {"file": "a"}]


def test_what_cannot_be_read_at_all_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "utf16.csv").write_text("a,b", encoding="utf-16")
    (tmp_path / "pointer.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS * 99).encode())[:-20])
    (tmp_path / "not.parquet").write_bytes(b"PAR1 not really")
    for name in ("rows.parquet.gz", "ROWS.ARROW.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(b"PAR1"))
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "broken.json").write_text('[{"a": 1},\n {"a": }]')
    (tmp_path / "empty").mkdir()
    expected = {
        "trian.jsonl": "did you mean train.jsonl",
        "none/train.jsonl": "no folder",
        "utf16.csv": "iconv",
        "pointer.jsonl": "git lfs pull",
        "cut.jsonl.gz": "damaged or cut short",
        "not.parquet": "cannot be read as parquet",
        "rows.parquet.gz": "a .parquet file is packed in itself and cannot be read from .gz; gunzip it",
        "ROWS.ARROW.GZ": "a .arrow file is packed in itself",
        "notes.docx": "known are .arrow, .*each but .arrow, .feather, .parquet also with .gz",
        "broken.json": r"broken\.json:2: not valid JSON",
        "empty": "holds no data file",
        "*.nothing": "matches no data file",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            list(open_source(str(tmp_path / name)))
        assert "\n" not in str(caught.value)


def test_without_pyarrow_a_table_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match=r"'pyarrow' is not installed; run: pip install .*\[data\]"):
        list(open_source(str(tmp_path / "rows.parquet")))


@pytest.mark.parametrize(("name", "piece"), [("a.jsonl.gz", b"\0"), ("a.json.gz", b" "), ("a.csv.gz", b"a\n")])
def test_a_bomb_is_refused_before_its_rows_are_read(tmp_path, name, piece):
    with gzip.open(tmp_path / name, "wb") as file:
        for _ in range(40):
            file.write(piece * (1 << 20))
    with pytest.raises(DataError, match="becomes more than 500 times as long") as caught:
        next(iter(open_source(str(tmp_path / name))))
    assert str(tmp_path / name) in str(caught.value)


def test_rows_that_are_much_alike_are_no_bomb(tmp_path):
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        for number in range(6000):
            file.write(json.dumps({"prompt": "the same long beginning " * 150, "answer": str(number * 7919)}) + "\n")
    assert sum(1 for _ in open_source(str(tmp_path / "rows.jsonl.gz"))) == 6000


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/secret.arrow"])
def test_a_saved_data_set_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "secret.arrow").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="which is not in it"):
        list(open_source(str(tmp_path / "data")))


def test_fields_of_other_rows_are_not_filled_in(tmp_path: Path) -> None:
    """A table has one set of fields for all calls."""

    def calling(name: str, **arguments: str) -> dict:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
        }

    rows = [{"messages": [calling("weather", city="Paris")]}, {"messages": [calling("rate", currency="EUR")]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet")
    found = [each.value for each in open_source(str(tmp_path / "calls.parquet"))]
    assert [each["messages"][0]["tool_calls"][0]["function"]["arguments"] for each in found] == [
        {"city": "Paris"},
        {"currency": "EUR"},
    ]


def test_rows_of_a_list_on_one_line_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    records = list(open_source(str(tmp_path / "a.json")))
    assert values(records) == ROWS
    assert [one.origin for one in records] == [
        f"{tmp_path / 'a.json'}:1",
        f"{tmp_path / 'a.json'}:1:2",
        f"{tmp_path / 'a.json'}:1:3",
    ]
