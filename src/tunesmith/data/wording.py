"""What two examples have in common: keys that are equal for equal content, and shingles for likeness."""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib import import_module
from typing import Any

import numpy as np

from tunesmith.base import MachineError
from tunesmith.base.files import canonical

from .conversation import spelled
from .example import Example

SHINGLE = 2
"""Words per shingle: one changed word changes two."""
FEWEST = 8
"""Shingles below which likeness means nothing: `12 + 35` and `12 + 36` are two tasks."""
COMMON = 0.1
"""Share of rows above which a shingle belongs to the task's wording (an instruction, a label), not to a row."""
PERMUTATIONS, BANDS, SEED = 128, 32, 42
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
"""A word, or one letter of a script that is written without spaces."""


def content_key(example: Example) -> str:
    """Equal for examples that teach the same: prompt, answers and numbers beside them, white space apart."""
    if example.text is not None:
        return _key("text", example.text)
    return _key(_prompt(example), *_answers(example), canonical(dict(example.columns)))


def prompt_key(example: Example) -> str:
    """Equal for examples that ask the same, capitals and punctuation apart; for plain text, that say the same."""
    return _key(
        *(" ".join(_words(text)) or text for text in [example.text if example.text is not None else _prompt(example)])
    )


def telling_keys(examples: Sequence[Example]) -> list[str]:
    """Per example the key that no other split may hold: its prompt's, or its content's where many share the prompt."""
    asked = [prompt_key(example) for example in examples]
    counts = Counter(asked)
    many = max(10, COMMON * len(examples))
    return [content_key(example) if counts[key] > many else key for key, example in zip(asked, examples, strict=True)]


def question_key(example: Example) -> str | None:
    """What an example gives its answer to: two with one question and different answers contradict each other.

    The question of a demonstration is its prompt, of a labelled answer the prompt and the answer, of a preference the
    prompt and the answers in any order. Plain text asks nothing.
    """
    if example.text is not None:
        return None
    answers = _answers(example)
    if len(answers) > 1:
        return _key(_prompt(example), *sorted(answers))
    return _key(_prompt(example), *(answers if example.columns else ()))


def shingle_sets(examples: Sequence[Example]) -> list[np.ndarray]:
    """Per example the sorted hashes (uint64) of its telling shingles: those that do not stand in every tenth row.

    A row's prompt is compared; where nothing in it tells it from others, prompt and answers are.
    """
    hashes: dict[str, int] = {}
    asked = [_shingles(_asked(example), hashes) for example in examples]
    common = _common(asked)
    kept = [_without(found, common) for found in asked]
    short = [number for number, found in enumerate(kept) if len(found) < FEWEST and examples[number].text is None]
    whole = [_shingles("\n".join(examples[number].strings()), hashes) for number in short]
    common = _common(whole)
    for number, found in zip(short, whole, strict=True):
        kept[number] = _without(found, common)
    return kept


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets of hashes."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


class Index:
    """Rows by MinHash signature (Broder 1997), banded so that neighbours are found without comparing all pairs."""

    def __init__(self, sets: Sequence[np.ndarray], threshold: float) -> None:
        """Sign every set; those with fewer than FEWEST shingles are never found."""
        rensa = _rensa()
        self.sets = sets
        self.threshold = threshold
        self._signatures = dict(zip(*_sign(rensa, sets), strict=True))
        self._bands = rensa.RMinHashLSH(threshold, PERMUTATIONS, BANDS)

    def add(self, number: int) -> None:
        """Make row `number` findable."""
        if number in self._signatures:
            self._bands.insert(number, self._signatures[number])

    def nearest(self, number: int) -> tuple[int, float] | None:
        """The added row most like row `number` and their exact Jaccard similarity, if it reaches the threshold."""
        if number not in self._signatures:
            return None
        candidates = sorted(self._bands.query(self._signatures[number]))
        scored = [(jaccard(self.sets[number], self.sets[other]), -other) for other in candidates if other != number]
        if not scored or max(scored)[0] < self.threshold:
            return None
        score, other = max(scored)
        return -other, score


def _sign(rensa: Any, sets: Sequence[np.ndarray]) -> tuple[list[int], list[Any]]:
    numbers = [number for number, found in enumerate(sets) if len(found) >= FEWEST]
    tokens = ([value.to_bytes(8, "little") for value in sets[number].tolist()] for number in numbers)
    return numbers, rensa.RMinHash.from_token_sets(list(tokens), PERMUTATIONS, SEED) if numbers else []


def _rensa() -> Any:
    try:
        return import_module("rensa")
    except ModuleNotFoundError:
        raise MachineError("finding near copies needs rensa; pip install 'tunesmith[data]'") from None


def _key(*texts: str) -> str:
    tidy = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts]
    return sha256("\0".join(tidy).encode()).hexdigest()


def _prompt(example: Example) -> str:
    return "\x01".join(map(spelled, example.prompt))


def _answers(example: Example) -> list[str]:
    return ["\x01".join(map(spelled, answer)) for answer in example.answers]


def _asked(example: Example) -> str:
    return example.text if example.text is not None else "\n".join(map(spelled, example.prompt))


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _shingles(text: str, hashes: dict[str, int]) -> np.ndarray:
    """Sorted hashes of the runs of SHINGLE words; `hashes` remembers words across calls."""
    words = _words(text)
    codes = np.array([_hash(word, hashes) for word in words], dtype=np.uint64)
    if len(codes) < SHINGLE:
        return np.unique(codes)
    mixed = np.zeros(len(codes) - SHINGLE + 1, dtype=np.uint64)
    for shift in range(SHINGLE):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[shift : shift + len(mixed)]
    return np.unique(mixed)


def _hash(word: str, hashes: dict[str, int]) -> int:
    found = hashes.get(word)
    if found is None:
        found = hashes[word] = zlib.crc32(word.encode())
    return found


def _common(sets: Iterable[np.ndarray]) -> np.ndarray:
    found = list(sets)
    if not found:
        return np.zeros(0, dtype=np.uint64)
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return values[counts > max(3, COMMON * len(found))]


def _without(found: np.ndarray, common: np.ndarray) -> np.ndarray:
    return np.setdiff1d(found, common, assume_unique=True)
