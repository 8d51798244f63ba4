"""The debtags example: the builder on a hand-written index, and the committed sample."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "examples" / "debtags"

PACKAGES = """\
Package: paint
Source: easel (1.2-3)
Version: 1.2-3+b1
Depends: libc6 (>= 2.34), libqt5gui5 | libqt5gui5-gles (>= 5.1), perl:any
Description: drawing program
Description-md5: aa
Tag: implemented-in::c++, interface::graphical, interface::x11, role::program,
 uitoolkit::qt, use::editing, interface::svga

Package: paint-doc
Source: easel
Description: manual of the drawing program
Description-md5: bb
Tag: role::documentation

Package: twin
Description: drawing program
Description-md5: cc
Tag: interface::commandline, scope::utility

Package: two-tongues
Description: speaks both
Description-md5: dd
Tag: implemented-in::c, implemented-in::python, interface::text-mode,
 interface::commandline, scope::TODO, works-with::text

Package: libfoo-perl
Description: Foo for Perl
Tag: devel::lang:perl, implemented-in::perl, role::devel-lib

Package: perl-tool
Description: a tool with more to say
Tag: implemented-in::perl, scope::utility

Package: untouched
Description: nobody looked at it
Tag: special::not-yet-tagged, special::not-yet-tagged::u, implemented-in::c

Package: bare
Description: no tags
"""

TRANSLATIONS = """\
Package: paint
Description-md5: aa
Description-en: drawing program
 It draws
 lines.
 .
 Features:
  * colours

Package: twin
Description-md5: cc
Description-en: drawing program
 It draws
 lines.
 .
 Features:
  * colours
"""


def load_builder() -> ModuleType:
    specification = importlib.util.spec_from_file_location("debtags_build", EXAMPLE / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


builder = load_builder()


def built(packages: str = PACKAGES) -> dict[str, dict[str, Any]]:
    found = builder.records(packages.split("\n"), TRANSLATIONS.split("\n"))
    return {record.row["id"]: record.row for record in found}


def sample(split: str) -> list[dict[str, Any]]:
    with gzip.open(EXAMPLE / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def asked(row: dict[str, Any]) -> list[str]:
    first_line = row["messages"][0]["content"].split("\n")[0]
    return list(first_line.removeprefix("Extract ").split(" of this software package.")[0].split(", "))


def test_a_package_becomes_the_question_and_answer_that_the_readme_shows() -> None:
    assert built()["paint"] == {
        "id": "paint",
        "source": "easel",
        "messages": [
            {
                "role": "user",
                "content": "Extract implemented_in, interface, uitoolkit, role of this software package. "
                "Answer with one JSON object with exactly these keys.\n"
                "Name: paint\n"
                "Summary: drawing program\n"
                "Description: It draws lines. Features: * colours\n"
                "Depends: libc6, libqt5gui5, perl",
            },
            {
                "role": "assistant",
                "content": '{"implemented_in": "c++", "interface": "graphical", "uitoolkit": "qt", "role": "program"}',
            },
        ],
    }


def test_packages_without_a_sure_and_informative_tag_are_left_out() -> None:
    # paint-doc: only a role; twin: word for word paint's description; two-tongues: two values of each; libfoo-perl: a
    # plain Perl module; untouched and bare: not tagged.
    assert set(built()) == {"paint", "perl-tool"}


def test_the_order_and_the_splits_do_not_depend_on_the_order_of_the_index() -> None:
    stanzas = [f"Package: p{number}\nDescription: d{number}\nTag: scope::utility\n" for number in range(400)]
    forward = builder.records("\n".join(stanzas).split("\n"), [])
    backward = builder.records("\n".join(reversed(stanzas)).split("\n"), [])
    assert forward == backward
    counts = {split: sum(record.split == split for record in forward) for split in builder.SPLITS}
    assert counts["train"] > counts["test"] > counts["validation"] > 0
    assert [record.row["id"] for record in forward] != sorted(record.row["id"] for record in forward)


def test_all_packages_of_a_source_fall_into_one_split() -> None:
    stanzas = [f"Package: p{n}\nSource: common (1.{n})\nDescription: d{n}\nTag: scope::suite\n" for n in range(50)]
    assert len({record.split for record in builder.records("\n".join(stanzas).split("\n"), [])}) == 1


@given(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=60), st.integers(1, 3))
def test_control_fields_survive_writing_and_reading(value: str, count: int) -> None:
    text = "\n".join(f"Name: {value}\nMore: 1\n {value}\n" for _ in range(count))
    assert list(builder.stanzas(text.split("\n"))) == [{"Name": value.strip(), "More": f"1\n{value}"}] * count


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = list(built().values())
    assert builder.compressed(rows) == builder.compressed(rows)
    # Bytes 4 to 7 of a gzip header are the time, byte 3 says whether a file name follows (RFC 1952).
    assert builder.compressed(rows)[3:8] == bytes(5)
    assert [json.loads(line) for line in gzip.decompress(builder.compressed(rows)).splitlines()] == rows


def test_a_folder_without_the_index_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="leave --lists out"):
        builder.index_lines(tmp_path, builder.INDEXES[0])


def test_the_command_builds_from_index_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "mirror_debian_dists_bookworm_"
    Path(f"{prefix}InRelease").write_text("Origin: Debian\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n")
    for name, text in zip(builder.INDEXES, (PACKAGES, TRANSLATIONS), strict=True):
        Path(f"{prefix}{name}").write_text(text)
    monkeypatch.setattr(sys, "argv", ["build.py", "--lists", str(tmp_path), "--out", str(tmp_path / "out")])
    builder.main()
    written = [gzip.decompress(path.read_bytes()).splitlines() for path in (tmp_path / "out").iterdir()]
    assert sorted(json.loads(line)["id"] for lines in written for line in lines) == ["paint", "perl-tool"]
    assert "| `scope` | 1 | 1 | utility 1 |" in capsys.readouterr().out


def test_the_sample_is_small_and_its_sides_share_no_source_package() -> None:
    train, test = sample("train"), sample("test")
    assert (len(train), len(test)) == (2000, 400)
    assert len({row["id"] for row in train + test}) == 2400
    assert not {row["source"] for row in train} & {row["source"] for row in test}
    assert sum((EXAMPLE / f"{split}.jsonl.gz").stat().st_size for split in ("train", "test")) < 1e6


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_of_the_sample_is_json_with_exactly_the_keys_asked(split: str) -> None:
    for row in sample(split):
        user, assistant = row["messages"]
        answer = json.loads(assistant["content"])
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert asked(row) == list(answer)
        assert set(answer) <= set(builder.ASKED)
        assert all(answer.values())
        assert builder.split_of(row["source"]) == split


def test_the_sample_keeps_its_long_tail() -> None:
    values = [json.loads(row["messages"][1]["content"]).get("implemented_in") for row in sample("train")]
    counts = {value: values.count(value) for value in set(values) - {None}}
    assert len(counts) == 22
    assert min(counts.values()) == 1
    assert counts["c"] == max(counts.values()) == 482


def test_the_sample_is_what_the_builder_writes() -> None:
    # The order is the builder's, and packing the rows again gives back the same content.
    for split in ("train", "test"):
        rows = sample(split)
        assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), key=builder.sha256)
        content = gzip.decompress((EXAMPLE / f"{split}.jsonl.gz").read_bytes())
        assert gzip.decompress(builder.compressed(rows)) == content
