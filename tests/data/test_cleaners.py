"""Planted copies are found and named; rows that only share the task's wording are left alone."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tunesmith.base import load_members
from tunesmith.base.secrets import redacted
from tunesmith.data import cleaners, wording
from tunesmith.data.cleaners import Cleaner
from tunesmith.data.cleaners.exact_duplicates import ExactDuplicates
from tunesmith.data.cleaners.leakage import Leakage
from tunesmith.data.cleaners.near_duplicates import NearDuplicates
from tunesmith.data.cleaners.secrets import Secrets
from tunesmith.data.example import Example

INSTRUCTION = "Read the description of a package and answer with the one word that names its role in the system."
VOCABULARY = [
    f"{head}{tail}"
    for head in ("lo", "ma", "ri", "ne", "su", "ka", "ti", "po")
    for tail in ("ran", "mel", "dor", "fis", "gan", "lut")
]


def example(prompt: str, answer: str = "tool", origin: str = "f:1", **columns: float) -> Example:
    asked = {"role": "user", "content": prompt}
    return Example(origin, (asked,), (({"role": "assistant", "content": answer},),), columns=columns)


def sentence(source: random.Random, words: int = 40) -> list[str]:
    return [source.choice(VOCABULARY) + source.choice("aeiou") for _ in range(words)]


def ask(words: Sequence[str], name: str, answer: str = "tool") -> Example:
    return example(f"{INSTRUCTION}\n\n{' '.join(words)}", answer, name)


def small_edit(words: Sequence[str], source: random.Random) -> list[str]:
    """One word changed, dropped or put in."""
    edited = list(words)
    place = source.randrange(len(words))
    edited[place : place + 1] = source.choice([["changed"], [], [words[place], "added"]])
    return edited


@pytest.mark.parametrize("seed", range(3))
def test_planted_copies_of_test_rows_are_named_and_nothing_else(seed: int) -> None:
    source = random.Random(seed)
    test = [sentence(source) for _ in range(100)]
    train = [ask(sentence(source), f"train:{number}", source.choice(["tool", "game"])) for number in range(400)]
    exact = [ask(words, f"exact:{number}") for number, words in enumerate(test[:20])]
    exact[0] = example(exact[0].prompt[0]["content"].upper().replace(" ", "\n") + "!", "another", "exact:0")
    near = [ask(small_edit(words, source), f"near:{number}") for number, words in enumerate(test[20:40])]
    rows = [*train, *exact, *near]
    source.shuffle(rows)
    splits = {
        "train": rows,
        "validation": [],
        "test": [ask(words, f"test:{number}") for number, words in enumerate(test)],
    }
    found = Leakage().find(splits)
    named = {rows[drop.index].origin: drop.reason for drop in found.drops}
    assert {drop.split for drop in found.drops} == {"train"}
    assert sum(name.startswith("exact") for name in named) == 20
    assert sum(name.startswith("near") for name in named) >= 18
    assert not [name for name in named if name.startswith("train")]
    assert named["exact:7"] == "stands in test too: copy of test:7"
    assert found.facts["exact"] == 20
    assert found.facts["near"] == len(named) - 20


def test_a_row_in_two_splits_stays_in_test_first_and_validation_second() -> None:
    source = random.Random(0)
    words = [sentence(source) for _ in range(3)]
    splits = {
        "train": [ask(words[0], "a"), ask(words[1], "b"), ask(words[2], "c")],
        "validation": [ask(words[0], "d"), ask(words[1], "e")],
        "test": [ask(words[1], "f")],
    }
    drops = {(drop.split, drop.index) for drop in Leakage().find(splits).drops}
    assert drops == {("validation", 1), ("train", 0), ("train", 1)}


@pytest.mark.parametrize("size", [3, 8, 30, 200])
def test_a_shared_instruction_and_short_rows_are_no_leak(size: int) -> None:
    instruction = INSTRUCTION * 5
    sums = [
        example(f"{instruction} What is {number} + {number + 1}?", str(2 * number + 1)) for number in range(2 * size)
    ]
    assert Leakage().find({"train": sums[:size], "test": sums[size:]}).drops == ()
    poems = [example("Write a poem.", " ".join(sentence(random.Random(number)))) for number in range(40)]
    assert Leakage().find({"train": poems[:20], "test": poems[20:]}).drops == ()


def test_exact_duplicates_keep_the_first_and_leave_test_alone() -> None:
    rows = [example("a  b", "x", "1"), example("a\nb", "x", "2"), example("a b", "X", "3"), example("c", "x", "4")]
    found = ExactDuplicates().find({"train": rows, "test": [rows[3], rows[3]]})
    assert [(drop.split, drop.index, drop.reason) for drop in found.drops] == [("train", 1, "exact duplicate: of 1")]
    assert found.facts["copies_in_test"] == 1
    assert found.facts["conflicts"] == 1
    assert found.facts["conflicting_rows"] == [["1", "3"]]


def test_contradictions_of_labels_and_preferences_are_counted() -> None:
    labelled = [example("a", "x", "1", label=1.0), example("a", "x", "2", label=0.0), example("a", "y", "3", label=1.0)]
    assert ExactDuplicates().find({"train": labelled}).facts["conflicting_rows"] == [["1", "2"]]
    good, bad = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    asked = ({"role": "user", "content": "a"},)
    pairs = [Example("1", asked, ((good,), (bad,))), Example("2", asked, ((bad,), (good,)))]
    found = ExactDuplicates().find({"train": pairs})
    assert found.drops == ()
    assert found.facts["conflicting_rows"] == [["1", "2"]]


def test_conversations_that_only_open_alike_are_not_the_same() -> None:
    """All turns before the last answer are what a row asks."""
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "How can I help?"}]
    rows = [Example(f"t:{n}", (talk[0],), ((talk[1], {"role": "user", "content": asked}, {"role": "assistant", "content": "Yes."}),)) for n, asked in enumerate(["Is my parcel lost?", "Is my card blocked?"])]  # fmt: skip
    (one, one_keys), (other, other_keys) = map(wording.read, rows)
    assert one != other
    assert all(left != right for left, right in zip(one_keys, other_keys, strict=True))
    said_else = replace(rows[0], answers=(({**talk[1], "content": "Tell me."}, *rows[0].answers[0][1:]),))
    assert wording.read(said_else)[1][1] == one_keys[1]  # what is asked is the same, whatever was answered on the way


def test_tools_are_part_of_what_a_row_teaches() -> None:
    bare = Example("t:0", ({"role": "user", "content": "Weather?"},), (({"role": "assistant", "content": "I cannot tell."},),))  # fmt: skip
    offered = replace(bare, tools=({"type": "function", "function": {"name": "weather"}},))
    (_, without), (_, beside) = wording.read(bare), wording.read(offered)
    assert (without[0] != beside[0], without[1] == beside[1], without[2] != beside[2]) == (True, True, True)


def test_calls_are_part_of_what_a_row_says() -> None:
    def calling(number: int) -> Example:
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": number}}}
        return Example(
            str(number),
            ({"role": "user", "content": "go"},),
            (({"role": "assistant", "content": "", "tool_calls": [call]},),),
        )

    assert ExactDuplicates().find({"train": [calling(1), calling(2)]}).drops == ()


def test_reasoning_is_part_of_what_a_row_teaches() -> None:
    def thought(number: int) -> Example:
        said = {"role": "assistant", "reasoning_content": f"by way {number}", "content": "42"}
        return Example(str(number), ({"role": "user", "content": "go"},), ((said,),))

    assert ExactDuplicates().find({"train": [thought(1), thought(2)]}).drops == ()
    assert len(ExactDuplicates().find({"train": [thought(1), thought(1)]}).drops) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 7 - 3?", "What is 7 + 3?", False),
        ("Add 3+4", "Add 3-4", False),
        ("Sort a list in C++?", "Sort a list in C#?", False),
        ("Sort a list in C?", "Sort a list in C#?", False),
        ("Is it 😀?", "Is it 😡?", False),
        ("5 €?", "5 $?", False),
        ("दिन का अर्थ", "दान का अर्थ", False),
        ("A well-known thing, isn't it?", "a wellknown thing isn't it", False),
        ("A well-known “thing”, isn't it?", "A well known thing — isn't it", True),
        ("and/or?", "And or", True),
        ("What is (2+3)*4?", "What is 2+3*4?", False),
        ("(2 plus 3) times 4?", "2 plus (3 times 4)?", False),
        ("Simplify !a && b", "Simplify a && b", False),
        ("(foo or bar) && baz", "foo or (bar && baz)", False),
        ("Evaluate f(x)[1]", "Evaluate f(x[1])", False),
        ("Is 1 in [0, 1)?", "Is 1 in [0, 1]?", False),
        ("Is a != b?", "Is a = b?", False),
        ("What is 5!?", "What is 5?", False),
        ("Hello! What is it (see below)?", "hello what is it, see below", True),
        ("A) red, B) blue!", "A. red B. blue", True),
    ],
)
def test_signs_tell_and_punctuation_does_not(one: str, other: str, same: bool) -> None:
    found = Leakage().find({"train": [example(one)], "test": [example(other)]})
    assert bool(found.drops) == same


def test_a_long_row_of_marks_is_read_at_once() -> None:
    assert "great" in wording.read(example("Great" + "!" * 200_000))[0]


def test_another_answer_makes_no_near_duplicate() -> None:
    source = random.Random(3)
    words = sentence(source, 40)
    rows = [ask(words, name, " ".join(sentence(source, 40))) for name in "ab"]
    others = [ask(sentence(source, 40), f"o{n}", " ".join(sentence(source, 40))) for n in range(30)]
    assert NearDuplicates().find({"train": [*rows, *others]}).drops == ()


def test_near_duplicates_are_dropped_from_their_threshold_on() -> None:
    source = random.Random(1)
    rows = [ask(sentence(source, 60), str(number)) for number in range(50)]
    copy = rows[10].prompt[0]["content"].rsplit(" ", 1)[0] + " changed"
    found = NearDuplicates().find({"train": [*rows, example(copy, "tool", "copy")]})
    assert [drop.index for drop in found.drops] == [50]
    assert found.drops[0].reason.endswith("of 10")
    assert NearDuplicates(threshold=1.0).find({"train": [*rows, example(copy, "tool", "copy")]}).drops == ()


def test_words_of_scripts_without_spaces_are_compared_letter_by_letter() -> None:
    source = random.Random(2)
    text = "".join(chr(source.randrange(0x4E00, 0x9000)) for _ in range(60))
    others = ["".join(chr(source.randrange(0x4E00, 0x9000)) for _ in range(60)) for _ in range(10)]
    found = Leakage().find(
        {"train": [*map(example, others), example(text[:30] + "的" + text[31:])], "test": [example(text)]}
    )
    assert [drop.index for drop in found.drops] == [10]


def test_every_cleaner_can_be_found_by_name() -> None:
    load_members(cleaners.__name__, list(cleaners.__path__))
    assert {"exact_duplicates", "near_duplicates", "leakage"} <= {
        str(member.model_fields["kind"].default) for member in Cleaner.members()
    }
    for member in Cleaner.members():
        assert member.model_validate({}).find({"train": [], "validation": [], "test": []}).drops == ()


HELD = {
    "a key of a service": "use sk-proj-Zq7mP2vN9xR4tB8kW1cJ here", "a private key": "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc", "a password in an address": "postgres://ada:tr0ub4dor@db/x",
    "a token in an address": "https://a.b/c?x=1&access_token=1234abcd", "a key of this machine's environment": "it is correct-h0rse-battery",
}  # fmt: skip
HARMLESS = (
    "the skateboardingchampion2024 rode", "sk-learn and sk-image", "postgres://user:password@localhost/db", "http://localhost:8000/v1", "a@b.example", "https://a.b/?key=houses",
    "2 + 2 ://", "commit 9f3c1d7ab2e8460c5d91f7e2a4b86c0d3e5f7a19", "git@github.com:a/b.git", "the token= sign",
)  # fmt: skip


@pytest.mark.parametrize("kind", HELD)
def test_rows_with_secrets_leave_every_split_and_are_named_without_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "correct-h0rse-battery")
    rows = [
        example("What?"),
        example(f"What?\n{HELD[kind]}", origin="f:2"),
        example("So", HELD[kind]),
        replace(example("So?"), meta={"a": [HELD[kind]]}),
    ]
    found = Secrets().find({"train": rows, "test": rows[1:2], "validation": [Example("t:1", text=HELD[kind])]})
    assert [(drop.split, drop.index) for drop in found.drops] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("test", 0),
        ("validation", 0),
    ]
    places = ["prompt.0.content", "answers.0.0.content", "meta.a.0", "prompt.0.content", "text"]
    assert [drop.reason for drop in found.drops] == [f"holds a secret: {kind}, in {place}" for place in places]
    assert found.facts["named"][0] == f"f:2 (train) holds a secret: {kind}, in prompt.0.content"


def test_other_rows_keep_what_only_looks_like_a_secret() -> None:
    assert Secrets().find({"train": [example(text) for text in HARMLESS]}).drops == ()
    assert [redacted(text) for text in HARMLESS] == list(HARMLESS)


def test_what_is_redacted_is_gone_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "correct-h0rse-battery")
    assert (
        redacted("http://ada:tr0ub4dor@db/x?token=abcdef12&y=1 correct-h0rse-battery!")
        == "http:/[redacted]@db/x?[redacted]&y=1 [redacted]!"
    )
