"""Corpus: the examples of a data set on disk, and in memory only what tells whether two of them are the same."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from .example import Example
from .shelf import Shelf, batched
from .wording import DIGEST, read, shingles

KEY = np.dtype(f"V{DIGEST}")


class Corpus:
    """Examples in the order in which they came. Per example it holds four digests and a few numbers, some 150 bytes."""

    def __init__(self, folder: Path | None = None) -> None:
        """An empty corpus, kept in unnamed files in `folder`."""
        self.folder, self.examples, self.shingles = folder, Shelf(folder), Shelf(folder)
        self._keys = tuple(bytearray() for _ in range(4))
        self._plain = bytearray()

    def add(self, examples: Sequence[Example]) -> None:
        """Put more behind the last; they are worked on together, so some thousand at a time are best."""
        words = []
        for example in examples:
            asked, keys = read(example)
            words.append(asked)
            for held, key in zip(self._keys, keys, strict=True):
                held += key
        self.shingles.extend(found.tobytes() for found in shingles(words))
        self.examples.extend(json.dumps(example.to_json(), ensure_ascii=False).encode() for example in examples)
        self._plain += bytes(example.text is not None for example in examples)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def content(self) -> np.ndarray:
        """KEY [N]: equal for examples that teach the same."""
        return np.frombuffer(bytes(self._keys[0]), dtype=KEY)

    @property
    def asked(self) -> np.ndarray:
        """KEY [N]: equal for examples that ask the same."""
        return np.frombuffer(bytes(self._keys[1]), dtype=KEY)

    @property
    def question(self) -> np.ndarray:
        """KEY [N]: equal for examples that should have one answer; nothing for plain text, which asks nothing."""
        return np.frombuffer(bytes(self._keys[2]), dtype=KEY)

    @property
    def words(self) -> np.ndarray:
        """KEY [N]: the words of what each asks."""
        return np.frombuffer(bytes(self._keys[3]), dtype=KEY)

    @property
    def plain(self) -> np.ndarray:
        """bool [N]: whether it is plain text."""
        return np.frombuffer(bytes(self._plain), dtype=bool)


class View(Sequence[Example]):
    """Some examples of a corpus, by their numbers; each is read when it is asked for."""

    def __init__(self, corpus: Corpus, numbers: np.ndarray) -> None:
        self.corpus, self.numbers = corpus, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "View": ...
    def __getitem__(self, index: int | slice) -> "Example | View":
        if isinstance(index, slice):
            return View(self.corpus, self.numbers[index])
        (line,) = self.corpus.examples.read([self.numbers[index]])
        return Example.from_json(json.loads(line))

    def __iter__(self) -> Iterator[Example]:
        return (Example.from_json(json.loads(line)) for line in self.lines())

    def lines(self) -> Iterator[bytes]:
        """Each example as JSON."""
        return self.corpus.examples.read(self.numbers)


def gathered(splits: Mapping[str, Sequence[Example]]) -> dict[str, View]:
    """Splits as views of one corpus; examples that are not in one yet are put into one."""
    views = {name: examples for name, examples in splits.items() if isinstance(examples, View)}
    if len(views) == len(splits):
        return views
    corpus, found = Corpus(), {}
    for name, examples in splits.items():
        start = len(corpus)
        fill(corpus, examples)
        found[name] = View(corpus, np.arange(start, len(corpus)))
    return found


def fill(corpus: Corpus, examples: Iterable[Example]) -> None:
    """Put examples into a corpus, some at a time."""
    for some in batched(examples):
        corpus.add(some)


def together(views: Sequence[View]) -> View:
    """Views of one corpus, one behind the other."""
    return View(views[0].corpus, np.concatenate([view.numbers for view in views]))


def firsts(keys: np.ndarray) -> np.ndarray:
    """int64 [N]: for each key the place where it stands first."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found: np.ndarray = first[inverse]
    return found


MANY = 0.1
"""Share of rows above which a prompt tells nothing about them (and at least ten of them)."""


def telling_keys(view: View, words: bool = False) -> np.ndarray:
    """KEY [N]: the key that no other split may hold: what an example asks, or its words alone, or, where many ask the same, what it teaches."""
    asked: np.ndarray = (view.corpus.words if words else view.corpus.asked)[view.numbers]
    _, inverse, counts = np.unique(asked, return_inverse=True, return_counts=True)
    many = counts[inverse] > max(10, MANY * len(asked))
    asked[many] = view.corpus.content[view.numbers[many]]
    return asked
