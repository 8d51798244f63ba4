"""What two examples have in common: keys that are equal for equal content, and shingles for likeness."""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import chain

import numpy as np

from tunesmith.base.files import canonical

from .conversation import spelled, spelled_whole
from .example import Example

DIGEST = 32
"""Bytes of a key."""
SHINGLE = 2
"""Words per shingle: one changed word changes two."""
MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number without pattern (2^64 over the golden ratio), to tell `a b` from `b a`."""
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17dd-\u17ff"
r"""Letters and what is set on them, such as the vowels of Indic scripts, which `\w` does not take for parts of words."""
_WORD = re.compile(rf"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[\w{_MARKS}]+")
"""A word, or one letter of a script that is written without spaces."""
_BARE = re.compile(
    r"[-+*/<>=%^&|#@$~](?:(?<![^\W\d_].)|(?![^\W\d_]))|[()\[\]{}]|[^\w\s\x00-\x7f]"
    r"|!(?:!{0,2}(?=[\w(\[{=])|(?<=\d!)|(?<=\b[a-z]!))"  # `!a`, `!!a`, `a != b`, `10!` and `n!`, but not `Hello!`
)
"""What may be a sign that tells (`3 + 4`, `C++`) and no punctuation within a word (`well-known`, `and/or`)."""
_BRACKETS = "()[]{}"
_TOLD = re.compile(r"[\w)\]}][(\[{]|[(\[{](?:\d|\w\b)")
"""Where brackets tell without an operator: they are called (`f(x)`), or open before a number or a single letter (`[0, 1)`)."""
_NO_WORD = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
"""The same for ASCII, where it is quicker: whatever is in no word becomes a space."""

Keys = tuple[bytes, bytes, bytes, bytes]


def read(example: Example) -> tuple[list[str], Keys]:
    """The words of what an example asks (of plain text, all), and its keys.

    * What it teaches: prompt, tools, answers and numbers beside them, white space apart.
    * What it asks, in all turns before the last answer, capitals and punctuation apart, but not operators, symbols and brackets of code; for plain text, what it says.
    * What it gives its answer to: two examples with one question and different answers contradict each other. The question of
      a demonstration is its prompt, of a labelled answer the prompt and the answer, of a preference the prompt and the
      answers in any order. Plain text asks nothing; its key is zero.
    * The words of what it asks alone, by which rows are drawn to be held out.
    """
    heard = (message for message in example.asked[len(example.prompt) :] if message["role"] != "assistant")
    prompt = example.text if example.text is not None else "\x01".join(map(spelled, (*example.prompt, *heard)))
    asked, tidy = split_words(prompt), _tidy(prompt)
    words = unicodedata.normalize("NFC", " ".join(asked)) or tidy
    asks, drawn_by = _key(words, *filter(None, [_signs(prompt)])), _key(words)
    if example.text is not None:
        return asked, (_key("text", tidy), asks, bytes(DIGEST), drawn_by)
    answers = ["\x01".join(map(spelled_whole, answer)) for answer in example.answers]
    tidied = [_tidy(answer) for answer in answers]
    tidy = "\2".join((tidy, canonical(list(example.tools)))) if example.tools else tidy
    content = _key(tidy, *tidied, _tidy(canonical(dict(example.columns))) if example.columns else "{}")
    if len(answers) > 1:
        question = _key(tidy, *map(_tidy, sorted(answers)))
    else:
        question = _key(tidy, *(tidied if example.columns else ()))
    return asked, (content, asks, question, drawn_by)


def split_words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    if text.isascii():
        return text.lower().translate(_NO_WORD).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _signs(text: str) -> str:
    """What tells besides words, each sign behind the number of words since the last: operators, emoji, currencies; a hyphen between blanks may be
    either, and counts. Brackets count in what looks like code, else they are punctuation (`(see below)`)."""
    signs = [found for found in _BARE.finditer(text) if found[0].isascii() or unicodedata.category(found[0])[0] == "S"]
    if all(found[0] in _BRACKETS or not found[0].isascii() for found in signs) and not _TOLD.search(text):
        signs = [found for found in signs if found[0] not in _BRACKETS]
    ends = (0, *(found.end() for found in signs))
    between = (text[end : found.start()] for end, found in zip(ends, signs, strict=False))
    return "".join(
        f"{len(split_words(apart)) if apart else 0}{found[0]}" for apart, found in zip(between, signs, strict=True)
    )


class _Codes(dict[str, int]):
    """Words by their checksums."""

    def __missing__(self, word: str) -> int:
        found = self[word] = zlib.crc32(word.encode())
        return found


def shingles(texts: Sequence[Sequence[str]]) -> Iterable[np.ndarray]:
    """Per text, given as words, the sorted hashes (uint64) of its runs of SHINGLE words; a single word stands for itself."""
    codes = _Codes()
    flat = np.fromiter(map(codes.__getitem__, chain.from_iterable(texts)), dtype=np.uint64)
    mixed = flat[:-1] * MIX + flat[1:]
    start = 0
    for text in texts:
        end = start + len(text)
        found = flat[start:end] if len(text) < SHINGLE else mixed[start : end - 1]
        found.sort()
        yield found[np.concatenate(([True], found[1:] != found[:-1]))] if len(found) else found
        start = end


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets of hashes."""
    merged = np.concatenate((left, right))
    merged.sort()
    both = int(np.count_nonzero(merged[1:] == merged[:-1]))
    return both / (len(left) + len(right) - both)


def _tidy(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _key(*tidy: str) -> bytes:
    return sha256("\0".join(tidy).encode()).digest()
