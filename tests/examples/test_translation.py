"""The translation example: the builder on a catalogue made here, and the committed sample."""

import gzip
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunesmith.stages.recipe import read_recipe

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "translation"

MESSAGES = {
    "": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n",
    "_Open file…": "Datei ö_ffnen …",
    "menu\x04~Close the window": "Fenster s~chließen",
    "toolbar\x04Close the window": "Dieses Fenster schließen",
    "%d file\x00%d files": "%d Datei\x00%d Dateien",
    "Delete": "Löschen",
    "Remove": "Löschen",
    "Deleted %(count)s of <b>{name}</b>": "<b>{name}</b>: %(count)s gelöscht",
    "Lost %s here": "Hier verloren",
    "GNOME": "GNOME",
    "Not done": "",
    "12:30": "12.30 h",
    "word " * 61: "Wort " * 61,
    "A rather long message of several words": "x" * 200,
    "snake_case_name and  two\nlines": "snake_case_name und zwei Zeilen",
}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_translation", EXAMPLE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_translation"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tree with one compiled catalogue, as gettext writes it: tables of lengths and places, then the texts."""
    pairs = sorted((key.encode(), value.encode()) for key, value in MESSAGES.items())
    tables, texts, place = [], b"", 28 + 16 * len(pairs)
    for side in range(2):
        for pair in pairs:
            tables.append(struct.pack("<II", len(pair[side]), place + len(texts)))
            texts += pair[side] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, place)
    path = tmp_path / "usr" / "share" / "locale" / "de" / "LC_MESSAGES" / "tool.mo"
    path.parent.mkdir(parents=True)
    path.write_bytes(head + b"".join(tables) + texts)
    return tmp_path


def rows_of(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_what_is_kept_of_a_catalogue_and_why_the_rest_is_not(build, folder):
    found, faults = build.pairs(build.catalogues([folder], "de"))
    assert {(pair.english, pair.translation) for pair in found} == {
        ("Open file…", "Datei öffnen …"),
        ("Close the window", "Fenster schließen"),
        ("%d file", "%d Datei"),
        ("Delete", "Löschen"),
        ("Remove", "Löschen"),
        ("Deleted %(count)s of <b>{name}</b>", "<b>{name}</b>: %(count)s gelöscht"),
        ("snake_case_name and two lines", "snake_case_name und zwei Zeilen"),
    }
    assert faults == {
        "other placeholders": 1, "not translated": 1, "empty": 2, "too few letters": 1, "too long": 1, "lengths too far apart": 1, "seen before": 1,
    }  # fmt: skip
    assert build.catalogues([folder], "fr") == []


def test_neither_a_message_nor_its_translation_is_in_two_splits(build, folder):
    found, _ = build.pairs(build.catalogues([folder], "de"))
    assert len({build.split_of(pair) for pair in found if pair.translation == "Löschen"}) == 1
    assert build.normal("Close the %s window!") == build.normal("close the 2 WINDOW")


def test_files_are_the_same_each_time_and_have_prompt_and_answer(build, folder, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["build.py", "--folders", str(folder), "--out", str(tmp_path / name)])
        build.main()
    files = sorted((tmp_path / "one").iterdir())
    assert [path.name for path in files] == ["de.test.jsonl.gz", "de.train.jsonl.gz", "de.validation.jsonl.gz"]
    assert all(path.read_bytes() == (tmp_path / "two" / path.name).read_bytes() for path in files)
    rows = [row for path in files for row in rows_of(path)]
    assert len(rows) == 7
    assert {"id", "source", "prompt", "answer"} == rows[0].keys()
    assert all(row["prompt"].startswith("Translate into German:\n") and row["source"] == "tool" for row in rows)
    assert "1 catalogues; left out: 2 empty" in capsys.readouterr().out


def test_the_committed_sample_has_no_message_on_both_sides(build):
    sides = {name: rows_of(EXAMPLE / f"{name}.jsonl.gz") for name in ("train", "test")}
    assert {name: len(rows) for name, rows in sides.items()} == {"train": 708, "test": 146}
    for key in ("prompt", "answer"):
        train, test = ({build.normal(row[key]) for row in rows} for rows in sides.values())
        assert not train & test
    assert sum(path.stat().st_size for path in EXAMPLE.glob("*.gz")) < 200_000


def test_the_recipe_measures_by_what_sacrebleu_signs():
    graders = read_recipe(ROOT / "recipes" / "translation.yaml").evaluate.graders
    assert [grader.signature.split("|version")[0] for grader in graders] == [
        "chrf|nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no",
        "bleu|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp",
        "ter|nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no",
    ]
