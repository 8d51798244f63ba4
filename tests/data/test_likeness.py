"""Near copies are those that comparing every pair finds, and telling shingles those that counting all of them leaves."""

import random
from collections import Counter

import numpy as np
import pytest

from tunesmith.data import shelf
from tunesmith.data.cleaners.leakage import Leakage
from tunesmith.data.cleaners.near_duplicates import NearDuplicates
from tunesmith.data.conversation import spelled_whole
from tunesmith.data.corpus import gathered
from tunesmith.data.example import Example
from tunesmith.data.likeness import COMMON, FEWEST, Index, Sets
from tunesmith.data.wording import jaccard, shingles, split_words

VOCABULARY = [
    f"{head}{tail}{end}" for head in ("lo", "ma", "ri", "ne") for tail in ("ran", "mel", "dor") for end in "aeiou"
]


def example(number: int, words: list[str]) -> Example:
    prompt = {"role": "user", "content": f"Say in one word what this is: {' '.join(words)}"}
    return Example(f"f:{number}", (prompt,), (({"role": "assistant", "content": f"a thing {number % 3}"},),))


def drawn(count: int, seed: int) -> list[Example]:
    """Rows of which half are edits, small and large, of others; some are short."""
    source = random.Random(seed)
    rows = [[source.choice(VOCABULARY) for _ in range(source.choice([3, 30, 60]))] for _ in range(count)]
    for number in range(0, count, 2):
        rows[number] = list(rows[source.randrange(count)])
        for _ in range(source.randrange(12)):
            rows[number][source.randrange(len(rows[number]))] = source.choice(VOCABULARY)
    return [example(number, words) for number, words in enumerate(rows)]


def plainly(examples: list[Example], whole: bool = False) -> list[np.ndarray]:
    """Telling shingles by counting everything in memory; of prompts, or of prompts and answers."""

    def told(texts: list[str]) -> list[np.ndarray]:
        sets = [found.copy() for found in shingles([split_words(text) for text in texts])]
        counts = Counter(value for found in sets for value in found.tolist())
        most = max(3, COMMON * len(sets))
        return [np.array([v for v in found.tolist() if counts[v] <= most], dtype=np.uint64) for found in sets]

    kept = told([f"user\n{one.prompt[0]['content']}" for one in examples])
    short = [number for number, found in enumerate(kept) if whole or len(found) < FEWEST]
    for number, found in zip(
        short,
        told(
            [
                "\n".join(map(spelled_whole, (*examples[number].prompt, *examples[number].answers[0])))
                for number in short
            ]
        ),
        strict=True,
    ):
        kept[number] = found
    return kept


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_telling_shingles_are_those_of_counting_everything(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shelf, "CHUNK", size)
    examples = drawn(60, 0)
    found = Sets(gathered({"train": examples})["train"])
    expected = plainly(examples)
    assert found.sizes().tolist() == [len(one) for one in expected]
    assert all(map(np.array_equal, found.read(np.arange(60)), expected))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [7, 1000])
def test_near_copies_are_those_of_comparing_every_pair(monkeypatch: pytest.MonkeyPatch, size: int, seed: int) -> None:
    monkeypatch.setattr(shelf, "CHUNK", size)
    examples = drawn(150, seed)
    sets = plainly(examples, whole=True)

    def nearest(number: int, others: list[int]) -> tuple[float, int] | None:
        scored = [
            (jaccard(sets[number], sets[o]), -o) for o in others if min(len(sets[number]), len(sets[o])) >= FEWEST
        ]
        return max(scored) if scored and max(scored)[0] >= 0.7 else None

    kept: list[int] = []
    expected = []
    for number in range(len(examples)):
        near = nearest(number, kept)
        if near is None:
            kept.append(number)
        else:
            expected.append((number, f"near duplicate: {near[0]:.2f} of f:{-near[1]}"))
    found = NearDuplicates(threshold=0.7).find({"train": examples}).drops
    assert [(drop.index, drop.reason) for drop in found] == expected
    assert len(expected) > 10

    sets[:] = plainly(examples)
    splits = {"train": examples[:100], "validation": examples[100:120], "test": examples[120:]}
    near_train = {n for n in range(100) if nearest(n, list(range(100, 150)))}
    copied = {drop.index for drop in Leakage().find(splits).drops if drop.split == "train"}
    assert near_train <= copied
    exact = [drop for drop in Leakage().find(splits).drops if drop.split == "train" and "copy of" in drop.reason]
    assert copied - near_train <= {drop.index for drop in exact}


def test_rows_with_few_shingles_are_never_found() -> None:
    index = Index(gathered({"train": [example(number, ["one"]) for number in range(30)]})["train"], 0.6)
    signed = index.signed(np.arange(30))
    index.add(signed)
    assert list(index.neighbours(signed)) == []
