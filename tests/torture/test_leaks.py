"""Copies of test rows planted in train are named, with the row that they copy, before anything is trained."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from malformed import said

from tunesmith.base import Run
from tunesmith.stages.prepare import STAGE, Prepare

VOCABULARY = [f"{start}{middle}{end}" for start in ("ba", "ke", "li", "mo", "nu", "ra", "so", "ti") for middle in ("", "de", "fu", "go", "vi") for end in ("n", "ma", "ret", "lis", "p", "xo")]  # fmt: skip
INSTRUCTION = "Read what the customer writes and say in one word which department should answer."


def prompt(draw: random.Random) -> str:
    """Some sentences that no other row holds, behind an instruction that all rows share."""
    words = [draw.choice(VOCABULARY) for _ in range(draw.randint(30, 60))]
    for place in range(7, len(words), 8):
        words[place] += "."
    return f"{INSTRUCTION} {' '.join(words)}"


def _words(change: Callable[[list[str], int], None]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        words = text.split()
        change(words, 2 * len(words) // 3)
        return " ".join(words)

    return edit


def _put(*places: int) -> Callable[[list[str], int], None]:
    def change(words: list[str], at: int) -> None:
        for place in places:
            words[at + place] = "something"

    return change


EDITS: dict[str, Callable[[str], str]] = {
    "a word changed": _words(_put(0)), "two words that follow each other changed": _words(_put(0, 1)), "two words changed": _words(_put(0, 4)),
    "a word dropped": _words(lambda words, at: words.pop(at)), "two words dropped": _words(lambda words, at: [words.pop(at), words.pop(at - 6)]),
    "the first word dropped": lambda text: text.partition(" ")[2], "the last word dropped": lambda text: text.rpartition(" ")[0],
    "a word put in": _words(lambda words, at: words.insert(at, "please")), "two words put in": _words(lambda words, at: [words.insert(place, "well") for place in (at, at - 9)]),
    "two words swapped": _words(lambda words, at: words.__setitem__(slice(at, at + 2), words[at : at + 2][::-1])),
    "a word misspelt": _words(lambda words, at: words.__setitem__(at, words[at] + "e")), "a word twice": _words(lambda words, at: words.insert(at, words[at])),
    "words before": lambda text: "Hello there! " + text, "words behind": lambda text: text + " Thank you very much.",
    "a signature behind": lambda text: text + "\n\nKind regards, Ada", "numbered": lambda text: "Ticket 4711: " + text,
    "another instruction": lambda text: text.replace(INSTRUCTION, "Which department should answer this customer?"), "no instruction": lambda text: text.removeprefix(INSTRUCTION),
    "sentences swapped": lambda text: INSTRUCTION + " " + ". ".join(sorted(text.removeprefix(INSTRUCTION).strip(" .").split(". "), reverse=True)), "a third cut off": lambda text: text[: len(text) * 5 // 6],
}  # fmt: skip
"""What people do to a row that they use again."""
COPIES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text, "in capitals": str.upper, "other white space": lambda text: text.replace(" ", "\n  "), "no punctuation": lambda text: text.replace(".", ""),
    "quoted": lambda text: f"“{text}”",
}  # fmt: skip


def as_row(form: str, asked: str, number: int) -> dict[str, object]:
    """A demonstration in a format."""
    answer = ("sales", "support", "law")[number % 3]
    if form == "messages":
        return {"messages": [said("system", "You sort mail."), said("user", asked), said("assistant", answer)]}
    return {"text": asked} if form == "text" else {"prompt": asked, "completion": answer}


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_planted_copies_are_named(tally, tmp_path, many):
    counted = tally(
        "D2",
        "copies of test rows in train are named with what they copy: 20 of 20 exact, at least 18 of 20 near, and no other row",
    )
    for seed in range(many(10, 1)):
        for form in ("messages", "prompt_completion", "text")[: many(3, 1)]:
            plant(form, seed, tmp_path / f"{form}-{seed}", counted)


def plant(form: str, seed: int, folder: Path, counted) -> None:
    """40 copies among 400 rows of train."""
    draw = random.Random(f"{form} {seed}")
    folder.mkdir()
    test = [prompt(draw) for _ in range(100)]
    planted = [(what, place, COPIES[what](test[place])) for place, what in enumerate([*COPIES] * 4)]
    planted += [(what, place, EDITS[what](test[place])) for place, what in enumerate(EDITS, len(planted))]
    assert len(planted) == 40
    assert len({asked for *_, asked in planted}) == 40
    rows: list[tuple[str | None, int, str]] = [*((None, -1, prompt(draw)) for _ in range(400)), *planted]
    draw.shuffle(rows)
    source = write(folder / "train.jsonl", [as_row(form, asked, number) for number, (*_, asked) in enumerate(rows)])
    held_out = write(folder / "test.jsonl", [as_row(form, asked, number + 1) for number, asked in enumerate(test)])
    made = Run(folder / "run")
    made.path.mkdir()
    artifact = made.once(
        STAGE, Prepare(source=source, test=held_out, validation_fraction=0), tokenizer_name="smollm2-135m", seed=0
    )
    named = {}
    for entry in map(json.loads, (artifact / "ledger.jsonl").read_text().splitlines()):
        if entry["state"] == "quarantined":
            named[entry["origin"]] = re.search(rf"of {re.escape(held_out)}:(\d+)$", entry["reason"])
    near, missed = 0, []
    for number, (what, place, _) in enumerate(rows, 1):
        found = named.pop(f"{source}:{number}", None)
        right = found is not None and int(found[1]) == place + 1
        if what in COPIES:
            counted.verdict(f"{form} {seed}: a copy {what}, row {place}", right, reason=str(found))
        elif what is not None:
            near += right
            missed += [] if right else [what]
    counted.verdict(f"{form} {seed}: 20 near copies", near >= 18, reason=f"{near} of 20 were named; not {missed}")
    counted.verdict(f"{form} {seed}: no other row is named", not named, reason=str(named))
