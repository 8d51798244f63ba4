"""Which rows are nearly the same: telling shingles on disk, neighbours by MinHash (Broder 1997), proved by exact Jaccard similarity."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np

from .conversation import spelled_whole
from .corpus import View
from .example import Example, Message
from .shelf import Shelf, batched, chunks
from .wording import jaccard, shingles, split_words

FEWEST = 8
"""Shingles below which likeness means nothing: `12 + 35` and `12 + 36` are two tasks."""
COMMON = 0.1
"""Share of rows above which a shingle belongs to the task's wording (an instruction, a label), not to a row."""
BANDS, BAND, SEED = 32, 4, 42
"""Rows whose likeness is 0.7 agree in one of 32 bands of 4 with probability 0.9998, and more surely if they are more alike."""


class Sets:
    """The telling shingles of each row of a view: those that do not stand in every tenth row.

    A row's prompt is compared; where nothing in it tells it from others, or `whole` rows are wanted, prompt and answers are.
    """

    def __init__(self, view: View, whole: bool = False) -> None:
        self._kept = Shelf(view.corpus.folder)
        self._place = np.arange(len(view))
        self._keep(view.corpus.shingles, view.numbers)
        short = np.flatnonzero(((self.sizes() < FEWEST) | whole) & ~view.corpus.plain[view.numbers])
        if len(short):
            texts_of = Shelf(view.corpus.folder)
            for some in batched(View(view.corpus, view.numbers[short])):
                texts = [split_words("\n".join(map(spelled_whole, _messages(example)))) for example in some]
                texts_of.extend(found.tobytes() for found in shingles(texts))
            self._place[short] = len(view) + np.arange(len(short))
            self._keep(texts_of, np.arange(len(short)))

    def sizes(self) -> np.ndarray:
        """int64 [N]: shingles of each row."""
        found: np.ndarray = self._kept.lengths()[self._place] // 8
        return found

    def read(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Sorted uint64 hashes of each of these rows."""
        return [np.frombuffer(found, dtype=np.uint64) for found in self._kept.read(self._place[numbers])]

    def _keep(self, given: Shelf, numbers: np.ndarray) -> None:
        """Put down what is left of these sets without what is common among them."""
        common = _common(given, numbers)
        for some in chunks(numbers):
            found = _flat(given, some)
            rare = ~_member(found.values, common)
            ends = np.concatenate([[0], np.cumsum(rare)])[found.ends]
            self._kept.extend(part.tobytes() for part in np.split(found.values[rare], ends[:-1]))


def _messages(example: Example) -> Iterator[Message]:
    """Of prompt and answers."""
    return chain(example.prompt, *example.answers)


@dataclass(frozen=True)
class Flat:
    """Several sets, one behind the other."""

    values: np.ndarray
    """uint64 [V]."""
    ends: np.ndarray
    """int64: one past the last value of each set."""


def _flat(shelf: Shelf, numbers: np.ndarray) -> Flat:
    parts = list(shelf.read(numbers))
    ends = np.cumsum([len(part) // 8 for part in parts])
    return Flat(np.frombuffer(b"".join(parts), dtype=np.uint64), ends)


def _common(shelf: Shelf, numbers: np.ndarray) -> np.ndarray:
    """What stands in more than COMMON of the sets (and in more than three).

    What is common in all of them is common in one of the chunks at least (Savasere et al. 1995): only that is counted.
    """
    candidates = np.zeros(0, dtype=np.uint64)
    for some in chunks(numbers):
        values, counts = np.unique(_flat(shelf, some).values, return_counts=True)
        candidates = np.union1d(candidates, values[counts >= COMMON * len(some) - 1e-6])
    totals = np.zeros(len(candidates), dtype=np.int64)
    for some in chunks(numbers):
        values = _flat(shelf, some).values
        found = np.searchsorted(candidates, values[_member(values, candidates)])
        totals += np.bincount(found, minlength=len(candidates))
    return candidates[totals > max(3, COMMON * len(numbers))]


def _member(values: np.ndarray, held: np.ndarray) -> np.ndarray:
    """bool: which values stand in the sorted array `held`."""
    if not len(held):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(held, values), len(held) - 1)
    found: np.ndarray = held[place] == values
    return found


@dataclass(frozen=True)
class Signed:
    """Rows by the bands of their signatures, sorted by band: 8 bytes for each of BANDS."""

    bands: np.ndarray
    """uint32 [K]: hash of a band and of what is in it."""
    rows: np.ndarray
    """int32 [K]: whose it is."""

    def without(self, dropped: set[int]) -> "Signed":
        """The same for fewer rows."""
        kept = ~np.isin(self.rows, list(dropped))
        return Signed(self.bands[kept], self.rows[kept])

    def merged(self, other: "Signed") -> "Signed":
        """Both together."""
        bands, rows = np.concatenate([self.bands, other.bands]), np.concatenate([self.rows, other.rows])
        order = np.argsort(bands, kind="stable")
        return Signed(bands[order], rows[order])


class Index:
    """Rows that can be found by likeness; those with fewer than FEWEST telling shingles never are."""

    def __init__(self, view: View, threshold: float, whole: bool = False) -> None:
        self.sets, self.threshold = Sets(view, whole), threshold
        self._signs = self.sets.sizes() >= FEWEST
        self._held: list[Signed] = []
        draw = np.random.default_rng(SEED)
        self._factors = draw.integers(0, 1 << 32, BANDS * BAND, dtype=np.uint32) | np.uint32(1)
        self._shifts = draw.integers(0, 1 << 32, BANDS * BAND, dtype=np.uint32)
        self._mixes = draw.integers(0, 1 << 63, (BANDS, BAND), dtype=np.uint64) | np.uint64(1)

    def signed(self, numbers: np.ndarray) -> Signed:
        """The bands of some rows' signatures."""
        numbers = numbers[self._signs[numbers]]
        if not len(numbers):
            return Signed(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int32))
        sets = self.sets.read(numbers)
        starts = np.cumsum([0, *map(len, sets[:-1])])
        # Products are taken modulo 2^32: each is a permutation of the 32-bit numbers, and the smallest of a set is its signature.
        hashed = ((np.concatenate(sets) * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)).astype(np.uint32)
        least = [np.minimum.reduceat(hashed * a + b, starts) for a, b in zip(self._factors, self._shifts, strict=True)]
        least_BKR = np.stack(least).astype(np.uint64).reshape(BANDS, BAND, len(numbers))
        bands = ((least_BKR * self._mixes[:, :, None]).sum(1, dtype=np.uint64) >> np.uint64(32)).astype(np.uint32)
        return Signed(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int32)).merged(
            Signed(bands.reshape(-1), np.tile(numbers.astype(np.int32), BANDS))
        )

    def add(self, signed: Signed) -> None:
        """Make rows findable. Parts of like size are merged, so that there are few and each row is moved seldom."""
        self._held.append(signed)
        while len(self._held) > 1 and 2 * len(self._held[-1].bands) > len(self._held[-2].bands):
            last = self._held.pop()
            self._held[-1] = self._held[-1].merged(last)

    def neighbours(self, signed: Signed, *more: Signed) -> Iterator[tuple[int, list[int]]]:
        """Rows of `signed`, in order, with the rows held here (and in `more`) that agree with them in a band."""
        pairs = [_pairs(signed, held) for held in (*self._held, *more)]
        codes = np.unique(np.concatenate(pairs)) if pairs else np.zeros(0, dtype=np.int64)
        each = zip((codes >> 32).tolist(), (codes & 0xFFFFFFFF).tolist(), strict=True)
        for row, others in groupby(each, key=lambda pair: pair[0]):
            yield row, [other for _, other in others if other != row]

    def nearest(self, row: int, others: Iterable[int]) -> tuple[int, float] | None:
        """Of some rows the one most like `row`, the earliest of equals, and their Jaccard similarity, if it reaches the threshold."""
        numbers = np.array([row, *others])
        own, *found = self.sets.read(numbers)
        scored = [(jaccard(own, one), -other) for one, other in zip(found, numbers[1:].tolist(), strict=True)]
        if not scored or max(scored)[0] < self.threshold:
            return None
        score, other = max(scored)
        return -other, score


def _pairs(left: Signed, right: Signed) -> np.ndarray:
    """int64: left row << 32 | right row for every band in which they agree."""
    start, stop = (np.searchsorted(right.bands, left.bands, side=side) for side in ("left", "right"))
    counts = stop - start
    before = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) if counts.size else counts
    found = right.rows[before + np.arange(int(counts.sum()))].astype(np.int64)
    return np.unique(np.repeat(left.rows.astype(np.int64), counts) << 32 | found)
