"""Malformed rows hidden among good ones: none is learnt from without a word, and every row is accounted for."""

import json
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hiding import KINDS, Hidden, json_lines, whole_files
from malformed import FORMS, corpus, good
from subjects import Peer, Subject
from tally import Tally

from tunesmith.base import Artifact, DataError, Run
from tunesmith.data.prepared import SPLITS, load_split
from tunesmith.models.load import load_tokenizer
from tunesmith.stages.prepare import STAGE, Prepare

TITLE = "malformed rows are quarantined with file:line, field and reason, or stop the stage; all rows are accounted for"


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokenizer for every trial."""
    monkeypatch.setattr("tunesmith.stages.prepare.load_tokenizer", cache(load_tokenizer))


def prepared(folder: Path, spec: Prepare) -> Artifact:
    """What the stage makes of a file, or raises."""
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder).once(STAGE, spec, tokenizer_name="smollm2-135m", seed=0)


def ledger(made: Artifact) -> dict[str, dict[str, str]]:
    """What became of each row, by its `file:line`."""
    return {entry["origin"]: entry for entry in map(json.loads, (made / "ledger.jsonl").read_text().splitlines())}


def specials(made: Artifact) -> dict[str, Counter[int]]:
    """The special tokens of each row, by where it stands."""
    special = set(range(17))  # SmolLM2's: every special token comes before the others
    return {
        row.origin: Counter(int(token) for part in row.sequences for token in part.tokens if int(token) in special)
        for split in SPLITS for row in load_split(made.path, split)
    }  # fmt: skip


def try_rows(hidden: Hidden, name: str, folder: Path, counted: Tally) -> None:
    """A trial for each malformed row of a file, and one for the sum."""
    places = hidden.places
    made = prepared(folder, Prepare(source=str(hidden.path), cleaners=(), refuse_above=0.95))
    entries, special = ledger(made), specials(made)
    usual = next(counts for origin, counts in special.items() if origin not in places)
    for origin, one in places.items():
        entry = entries.get(origin, {"state": "lost", "reason": None})
        if one.legal:
            held = entry["state"] == "used" and special[origin] == usual
        else:
            held = entry["state"] == "quarantined" and one.field in (entry["reason"] or "") != ""
        counted.verdict(f"{name}: {one.name}", held, bool(entry["reason"]), f"{entry['state']}: {entry['reason']}")
    lost = [origin for origin, entry in entries.items() if origin not in places and entry["state"] != "used"]
    summed = Counter(entry["state"] for entry in entries.values())
    whole = len(entries) == len(places) + hidden.good == summed["used"] + summed["truncated"] + summed["quarantined"]
    counted.verdict(f"{name}: the sum", whole and not lost, reason=f"{summed}, {lost[:3]}")


def test_no_malformed_row_is_learnt_from_in_silence(subject: Subject, tally, tmp_path, many, request):
    counted = tally("D1", TITLE, subject.name)
    if isinstance(subject, Peer):
        try_peer(subject, tmp_path, request.getfixturevalue("tiny_folder"), counted, many(1000, 3))
        return
    whole = len(FORMS)
    for hide, forms in KINDS:
        for form in forms if hide is json_lines else forms[: many(whole, 1)]:
            folder = tmp_path / f"{hide.__name__}-{form}"
            folder.mkdir()
            hidden = hide(folder, form, many(1000, 40))
            try_rows(hidden, f"{form} {hidden.path.name.partition('.')[2]}", folder / "run", counted)
    for what, (path, said) in whole_files(tmp_path).items():
        try:
            made = prepared(tmp_path / f"{path.name}.run", Prepare(source=str(path)))
            counted.note(f"whole file: {what}", "silent", str(made.metrics))
        except DataError as error:
            counted.verdict(f"whole file: {what}", path.name in str(error) and said in str(error), True, str(error))
    try_mended(tmp_path, counted)
    for form in FORMS if many(1, 0) else ("prompt_completion", "text"):
        try_long(tmp_path / "long" / form, form, counted)


def try_mended(folder: Path, counted: Tally) -> None:
    """What is only another way to save the same rows gives the same tokens; a mark that was taken away is named."""
    text = "".join(json.dumps(good("messages", number)) + "\n" for number in range(40)).encode()
    ways = {"plain": text, "CRLF": text.replace(b"\n", b"\r\n"), "a byte order mark": b"\xef\xbb\xbf" + text, "no last line end": text[:-1], "blank lines": text.replace(b"\n", b"\n\n \n")}  # fmt: skip
    found = {}
    for what, content in ways.items():
        path = folder / what / "rows.jsonl"
        path.parent.mkdir()
        path.write_bytes(content)
        made = prepared(folder / what / "run", Prepare(source=str(path), cleaners=()))
        noted = "byte order mark" in json.dumps(json.loads((made / "summary.json").read_text())["sources"])
        found[what] = (made.manifest["files"]["rows.safetensors"]["sha256"], noted)
        held = found[what][0] == found["plain"][0] and noted == ("mark" in what)
        counted.verdict(f"another way to save: {what}", held, reason=str(found[what]))


LONGEST = 64
"""Tokens a row may have in the trials of rows that are longer."""


def try_long(folder: Path, form: str, counted: Tally) -> None:
    """One of forty rows is far too long: its answer is cut, or, behind a question that leaves no room for one, it is named; text goes on in further rows, each token learnt once."""
    folder.mkdir(parents=True)
    for part, words in {"answer": "black 7", "question": "Shade 7"}.items():
        rows = [json.dumps(good(form, number)) for number in range(40)]
        rows[7] = rows[7].replace(words, " ".join([words] * 600))
        path = folder / f"{part}.jsonl"
        path.write_text("\n".join(rows) + "\n")
        asked = Prepare(source=str(path), cleaners=(), max_tokens=LONGEST, refuse_above=0.95)
        made = prepared(folder / part, asked)
        entries, origin = ledger(made), f"{path}:8"
        lengths, learnt = lengths_of(made, origin)
        expected = "used" if form == "text" else "truncated" if part == "answer" else "quarantined"
        held = len(entries) == 40 and all(
            each["state"] == (expected if one == origin else "used") for one, each in entries.items()
        )
        if expected == "used":
            whole = prepared(folder / f"{part} whole", asked.model_copy(update={"max_tokens": 9999}))
            held = (
                held and len(lengths) > 1 and max(lengths) == LONGEST and learnt == lengths_of(whole, origin)[1] > 1000
            )
        else:
            held = held and lengths == [LONGEST] * (expected == "truncated")
            held = held and (str(LONGEST) in entries[origin]["reason"])
        reason = f"{entries.get(origin)}, {len(entries)} rows, {lengths[:3]} tokens"
        counted.verdict(f"{form}: a {part} longer than a row may be", held, reason=reason)


def lengths_of(made: Artifact, origin: str) -> tuple[list[int], int]:
    """Tokens of each row of an origin, and how many tokens of all of them are learnt."""
    rows = [row for split in SPLITS for row in load_split(made.path, split) if row.origin == origin]
    return [len(row) for row in rows], sum(int(part.learn.sum()) for row in rows for part in row.sequences)


def try_peer(peer: Peer, folder: Path, model: Path, counted: Tally, most: int) -> None:
    """The same lines on the peer: each among eight good rows, in one process for all of a format."""
    for form in ("messages", "prompt_completion", "text"):
        place = folder / form
        place.mkdir()
        bad = corpus(form)[-most:]
        for number, one in enumerate(bad):
            lines = [json.dumps(good(form, other)).encode() for other in range(8)]
            lines.insert(4, one.line)
            (place / f"{number}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        script = Path(__file__).with_name("peer_rows.py")
        done = subprocess.run(
            [str(peer.python), str(script), str(place), str(model), str(len(bad))],
            env=peer.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        for number, one in enumerate(bad):
            came = json.loads((place / f"{number}.came").read_text())
            held = (
                came["outcome"] == "used" and came["specials"] == came["usual"]
                if one.legal
                else came["outcome"] == "named"
            )
            said = came["outcome"] in ("named", "raised")
            counted.verdict(f"{form} jsonl: {one.name}", held, said, f"{came['outcome']}: {came['said']}")


def test_a_spoiled_reader_is_seen(tmp_path, monkeypatch):
    """The trials can fail: a reader that takes a row it should refuse is counted as silent, one that loses a row too."""
    folder = tmp_path / "rows"
    folder.mkdir()
    monkeypatch.setattr("tunesmith.data.formats.says_nothing", lambda text: False)
    counted = Tally("D1", TITLE)
    try_rows(json_lines(folder, "prompt_completion", 20), "spoiled", tmp_path / "run", counted)
    assert {one["trial"] for one in counted.trials if one["outcome"] == "silent"} >= {
        "spoiled: prompt is empty", "spoiled: completion is blank"
    }  # fmt: skip


def test_each_format_has_sixty_malformed_rows():
    assert all(len(corpus(form)) >= 60 for form in FORMS)
    assert all(len({one.name for one in corpus(form)}) == len(corpus(form)) for form in FORMS)
