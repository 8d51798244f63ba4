"""From files to tokens: what is written agrees with what was given, and bad data stops the stage with a useful line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.base import Artifact, ConfigError, DataError, Run
from tunesmith.base.spec import validate
from tunesmith.data.prepared import SPLITS, load_examples, load_split
from tunesmith.data.preview import preview
from tunesmith.models.load import load_tokenizer
from tunesmith.stages.prepare import STAGE, Prepare, input_files

WORDS = [
    "river",
    "lamp",
    "stone",
    "cloud",
    "engine",
    "paper",
    "violin",
    "garden",
    "copper",
    "window",
    "salt",
    "thread",
    "harbour",
]


def row(number: int, **more: Any) -> dict[str, Any]:
    words = " ".join(WORDS[(number * step + step) % len(WORDS)] + str(number * step) for step in range(1, 15))
    return {"prompt": f"Name the colour of {words}", "answer": ["red", "blue"][number % 2], **more}


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> str:
    path.write_text(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows), encoding="utf-8"
    )
    return str(path)


def run(tmp_path: Path, spec: Prepare, seed: int = 0) -> Artifact:
    made = Run(tmp_path / "run")
    made.path.mkdir(exist_ok=True)
    return made.once(STAGE, spec, tokenizer_name="smollm2-135m", seed=seed)


def summary(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("smollm2-135m")


def test_every_row_is_accounted_for_and_tokens_belong_to_examples(tmp_path: Path, tokenizer: Any) -> None:
    bad: list[dict[str, Any] | str] = ['{"prompt": ', {"prompt": "x", "answer": ""}, {"prompt": "y"}]
    source = write(tmp_path / "t.jsonl", [*(row(number) for number in range(60)), row(3), *bad])
    artifact = run(tmp_path, Prepare(source=source))
    found = summary(artifact)
    assert found["counts"] == {
        "rows": 64,
        "used": 60,
        "truncated": 0,
        "quarantined": 4,
        "reasons": {"exact duplicate": 1, "not valid JSON": 1, "empty answer": 1, "'answer' is missing": 1},
    }
    ledger = [json.loads(line) for line in (artifact / "ledger.jsonl").read_text().splitlines()]
    assert [entry["origin"] for entry in ledger] == [f"{source}:{line}" for line in range(1, 65)]
    assert found["sources"][0]["format"] == "prompt_completion"
    for split in SPLITS:
        rows, examples = load_split(artifact.path, split), load_examples(artifact.path, split)
        assert [one.origin for one in rows] == [one.origin for one in examples]
        for one, example in zip(rows, examples, strict=True):
            (sequence,) = one.sequences
            learnt = tokenizer.decode(sequence.tokens[sequence.learn])
            assert learnt == f"{example.gold}<|im_end|>"
        used = [entry for entry in ledger if entry["split"] == split and entry["state"] == "used"]
        assert sum(entry["supervised"] for entry in used) == found["splits"][split]["supervised_tokens"]
    assert [artifact.metrics[f"{split}_rows"] for split in SPLITS] == [48, 6, 6]
    assert found["splits"]["train"]["tokens"] == sum(len(one) for one in load_split(artifact.path, "train"))


def test_the_same_data_and_seed_give_the_same_artifact(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [row(number, topic=number % 3) for number in range(30)])
    first = run(tmp_path, Prepare(source=source, stratify="topic"))
    (tmp_path / "run").rename(tmp_path / "old")
    assert run(tmp_path, Prepare(source=source, stratify="topic")).id == first.id
    assert run(tmp_path, Prepare(source=source, stratify="topic"), seed=1).id != first.id
    assert summary(Artifact.open(tmp_path / "old" / first.path.name))["classes"]["test"] == {"0": 1, "1": 1, "2": 1}


def test_copies_of_test_rows_leave_train_and_are_named(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [row(number) for number in range(40)])
    test = write(tmp_path / "test.jsonl", [row(number) for number in (5, 6, 100, 101)])
    artifact = run(tmp_path, Prepare(source=source, test=test, validation_fraction=0))
    assert artifact.metrics["dropped_by_leakage"] == 2
    assert artifact.metrics["train_rows"] == 38
    assert artifact.metrics["test_rows"] == 4
    assert summary(artifact)["cleaners"]["leakage"]["named"] == [
        f"{source}:6 (train) stands in test too: copy of {test}:1",
        f"{source}:7 (train) stands in test too: copy of {test}:2",
    ]


def test_a_group_stays_on_one_side_of_files_of_their_own(tmp_path: Path) -> None:
    """Test keeps its authors, validation those that are not in test; rows of no author belong to none."""
    source = write(tmp_path / "t.jsonl", [row(number, author=number % 10) for number in range(40)])
    held = write(tmp_path / "v.jsonl", [row(100 + n, author=name) for n, name in enumerate(["0", "1", "v", "w"])])
    test = write(tmp_path / "test.jsonl", [row(110, author="0"), row(111, author="x"), row(112, author=None), row(113)])
    spec = Prepare(source=source, validation=held, test=test, group="author", cleaners=(), refuse_above=0.5)
    artifact = run(tmp_path, spec)
    authors = {name: {one.unit for one in load_examples(artifact.path, name)} for name in SPLITS}
    assert authors == {
        "train": set(map(str, range(2, 10))),
        "validation": {"1", "v", "w"},
        "test": {"0", "x", ""},
    }
    assert summary(artifact)["cleaners"] == {"group": {"dropped": 9, "of_no_group": 2}}
    assert artifact.metrics["dropped_by_group"] == 9
    ledger = {entry["origin"]: entry for entry in map(json.loads, (artifact / "ledger.jsonl").read_text().splitlines())}
    assert ledger[f"{source}:11"]["reason"] == f"its 'author' stands in test too: as in {test}:1"
    assert ledger[f"{source}:12"]["reason"] == f"its 'author' stands in validation too: as in {held}:2"
    assert (ledger[f"{held}:1"]["state"], ledger[f"{held}:1"]["split"]) == ("quarantined", "validation")
    alone = run(tmp_path, Prepare(source=source, group="author", cleaners=()))
    assert summary(alone)["cleaners"] == {}


def test_long_rows_are_cut_or_quarantined_and_too_many_stop_the_stage(tmp_path: Path) -> None:
    rows: list[Any] = [row(number) for number in range(20)]
    rows[4] = {"prompt": "Count on", "answer": "one two three " * 200}
    rows[9] = {"prompt": "one two three " * 200, "answer": "four"}
    source = write(tmp_path / "t.jsonl", rows)
    artifact = run(tmp_path, Prepare(source=source, max_tokens=200))
    ledger = [json.loads(line) for line in (artifact / "ledger.jsonl").read_text().splitlines()]
    assert ledger[4]["state"] == "truncated"
    assert 0 < ledger[4]["supervised"] < 200
    assert ledger[9]["state"] == "quarantined"
    assert ledger[9]["reason"].startswith("nothing to learn within max_tokens")
    assert max(len(one) for split in SPLITS for one in load_split(artifact.path, split)) == 200
    message = (
        r"20 of 20 rows for train .*; the first is .*t\.jsonl:1: .*; raise prepare.max_tokens, or raise prepare.ref"
    )
    with pytest.raises(DataError, match=message):
        run(tmp_path, Prepare(source=source, max_tokens=40))


def test_bad_data_is_refused_in_one_line(tmp_path: Path) -> None:
    good = [row(number) for number in range(10)]
    mixed = write(tmp_path / "mixed.jsonl", [*good, *({"prompt": "x", "answer": ""} for _ in range(5))])
    other = write(
        tmp_path / "other.jsonl", [*(row(n) for n in (50, 51, 52)), *({"prompt": "x", "answer": ""} for _ in range(5))]
    )
    empty = write(tmp_path / "empty.jsonl", [])
    broken = write(tmp_path / "broken.jsonl", ["{", "["])
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    fine = write(tmp_path / "fine.jsonl", good)
    expected = {
        Prepare(
            source=mixed
        ): r"5 of 15 rows for train .* \(5 empty answer\); the first is .*mixed\.jsonl:11: empty answer",
        Prepare(source=empty): "holds no rows",
        Prepare(source=broken, refuse_above=1): "2 of 2 rows for train",
        Prepare(
            source=(fine, pairs)
        ): r"rows of different shape: .*fine\.jsonl:\d+ is a demonstration and .*pairs\.jsonl:1 is a preference",
        Prepare(source=fine, test=other): "5 of 8 rows for test",
        Prepare(source=fine, stratify="topic"): "has no field 'topic'",
        Prepare(source=str(tmp_path / "fin.jsonl")): "did you mean fine.jsonl",
    }
    for spec, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            run(tmp_path, spec)
        assert "\n" not in str(caught.value)
    assert run(tmp_path, Prepare(source=mixed, refuse_above=0.4)).metrics["quarantined"] == 5


def test_preferences_may_be_measured_on_demonstrations(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": f"a {n}", "chosen": "b", "rejected": "c"} for n in range(9)])
    fine = write(tmp_path / "fine.jsonl", [row(number) for number in range(10)])
    assert run(tmp_path, Prepare(source=pairs, test=fine, validation_fraction=0)).metrics["test_rows"] == 10
    with pytest.raises(DataError, match="rows of different shape"):
        run(tmp_path, Prepare(source=pairs, validation=fine, test_fraction=0))


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [row(1)])
    for tree in ({"format": "chatml"}, {"test_rows": 3}, {"stratify": "a", "group": "b"}, {"refuse_above": 2}):
        with pytest.raises(ConfigError):
            validate(Prepare, {"source": source, **tree}, "recipe.yaml")
    with pytest.raises(ConfigError, match="is the train data too"):
        input_files(Prepare(source=source, test=str(tmp_path / "*.jsonl")))
    spec = Prepare(source=source, cleaners=[{"kind": "near_duplicates", "threshold": 0.8}])
    assert validate(Prepare, spec.model_dump(mode="json"), "recipe.yaml") == spec


def test_first_rows_only_and_one_row_is_enough(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [row(number) for number in range(30)])
    assert run(tmp_path, Prepare(source=source, rows=10)).metrics["rows_in"] == 10
    assert run(tmp_path, Prepare(source=source, rows=1)).metrics["train_rows"] == 1


def test_preferences_and_plain_text_come_through(tmp_path: Path) -> None:
    pairs = [{"prompt": row(n)["prompt"], "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(12)]
    artifact = run(tmp_path, Prepare(source=write(tmp_path / "p.jsonl", pairs)))
    assert all(len(one.sequences) == 2 for one in load_split(artifact.path, "train"))
    text = tmp_path / "t.txt"
    text.write_text("\n\n".join(row(number)["prompt"] for number in range(12)))
    rows = load_split(run(tmp_path, Prepare(source=str(text))).path, "train")
    assert all(np.all(one.sequences[0].learn[1:]) for one in rows)


def test_preview_shows_what_is_learnt_and_no_control_characters(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "t.jsonl", [{"prompt": "Hi \x1b[31m <|im_end|>", "answer": "Hello"}])
    (one,) = load_split(run(tmp_path, Prepare(source=source)).path, "train")
    plain = preview(one, tokenizer, plain=True).plain
    assert "⟦Hello<|im_end|>⟧" in plain
    assert "\x1b" not in plain
    assert "␛[31m" in plain
    colours = {span.style for span in preview(one, tokenizer).spans}
    assert {"bold green", "dim"} <= colours
    assert "⟦" not in preview(one, tokenizer).plain


def test_rows_say_what_they_count_where_a_field_is_named_for_it(tmp_path: Path) -> None:
    odd = [row(70, worth="much"), row(71), row(72, worth=-1), row(73, worth=True)]
    text = row(74, worth="0.5")
    source = write(tmp_path / "t.jsonl", [*(row(number, worth=number / 10) for number in range(40)), text, *odd])
    artifact = run(tmp_path, Prepare(source=source, weight="worth"))
    examples, rows = load_examples(artifact.path, "train"), load_split(artifact.path, "train")
    assert [one.columns for one in rows] == [{"weight": float(example.meta["worth"])} for example in examples]
    reasons = summary(artifact)["counts"]["reasons"]
    assert sum(count for reason, count in reasons.items() if "'worth' is no number from 0 up" in reason) == 4


def test_rows_carry_what_they_are_of(tmp_path: Path) -> None:
    answers = [{"role": "a", "in": ["c", "d"]}, {"role": "a"}, {"in": "c"}]
    source = write(
        tmp_path / "t.jsonl", [{**row(n), "answer": json.dumps({**answers[n % 3], "n": n})} for n in range(30)]
    )
    spec = Prepare(source=source, classes="answer.in", test_fraction=6, validation_fraction=0, cleaners=())
    artifact = run(tmp_path, spec)
    for split in ("train", "test"):
        held, examples = load_split(artifact.path, split), load_examples(artifact.path, split)
        expected = {0: ("c", "d"), 1: (), 2: ("c",)}
        assert [one.classes for one in held] == [expected[json.loads(each.gold)["n"] % 3] for each in examples]
        counts = summary(artifact)["classes"][split]
        assert counts["c"] + counts["none"] == len(held)
        assert counts["d"] == sum("d" in one.classes for one in held)
    for path, message in (
        ("answer.im", "no row for train has 'answer.im'"),
        ("kind", "has no field 'kind' .*it has none"),
    ):
        with pytest.raises(DataError, match=message):
            run(tmp_path, spec.model_copy(update={"classes": path}))


def test_rows_held_out_in_files_of_their_own_need_no_class(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [row(n, kind="ab"[n % 2]) for n in range(30)])
    other = write(tmp_path / "v.jsonl", [row(n, **({"kind": "b"} if n % 2 else {})) for n in range(40, 50)])
    for field in ("classes", "stratify"):
        spec = Prepare(source=source, validation=other, test_fraction=6, cleaners=()).model_copy(update={field: "kind"})
        artifact = run(tmp_path, spec)
        assert {one.classes for one in load_split(artifact.path, "test")} == {("a",), ("b",)}
        assert {one.classes for one in load_split(artifact.path, "validation")} == {(), ("b",)}
        with pytest.raises(DataError, match="has no field 'kind'"):
            run(tmp_path, spec.model_copy(update={"source": other, "validation": source}))


def test_further_fields_with_numbers_are_columns_of_every_split(tmp_path: Path) -> None:
    rows = [row(number, stars=number % 5, bonus=-0.5) for number in range(40)]
    source = write(tmp_path / "t.jsonl", [*rows, row(50, stars="many", bonus=1), row(51, stars=2)])
    artifact = run(tmp_path, Prepare(source=source, columns=("stars", "bonus"), test_fraction=5))
    for split in ("train", "validation", "test"):
        examples, found = load_examples(artifact.path, split), load_split(artifact.path, split)
        assert found
        expected = [{"stars": example.meta["stars"], "bonus": -0.5} for example in examples]
        assert [dict(one.columns) for one in found] == expected
    ledger = (artifact / "ledger.jsonl").read_text()
    assert "'stars' is no number: it is 'many'" in ledger
    assert "'bonus' is no number: it is None" in ledger
