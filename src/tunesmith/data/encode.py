"""Tokens of plain text, each word tokenised once: most of a text is words that were seen before."""

import json
import re
from array import array
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, Literal

from tokenizers import Tokenizer

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ENDING_WORDS = (GPT4 % "1,3", GPT4.replace("{%s}", ""))
"""Patterns of pre-tokenizers (of Llama 3 and of Qwen) that always end a piece between a letter and ` x`. So does GPT-2's."""
BETWEEN = re.compile(r" (?=[A-Za-z])(?<=[A-Za-z] )")
"""A space that always begins the second of two words."""
MOST = 50_000
"""Words that are remembered; with more, those are forgotten that did not come again since so many were last reached."""
FIRST = "\0"
"""Stands before the part that a text begins with; the others are known without the space that they begin with."""
INNER = "\0"
"""Stands before a piece that goes on from another, for a tokenizer that begins texts with a space of its own (SentencePiece's)."""


class Encoder:
    """Plain text as tokens, in which nothing is special.

    A pre-tokenizer that begins a new piece at every space between two letters lets the words on both sides be tokenised apart, with
    the same result. Only those are relied on whose pattern says so; with any other tokenizer each text is tokenised as a whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self.by_words = ends_words(self._backend)
        """Whether words are tokenised apart."""
        self.begins = begins(self._backend)
        """What the tokenizer begins with a space of its own, if anything: the `first` piece of a text, or `every` one behind a special token."""
        self._words: dict[str, bytes] = {}
        self._before: dict[str, bytes] = {}

    def __call__(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Tokens of each text, the bytes of an int32 array."""
        if not self.by_words:
            return self._tokenised(set(texts))
        split = {text: BETWEEN.split(FIRST + text) for text in texts}
        known, before = self._words, self._before
        new = set[str]().union(*split.values()).difference(known)
        known.update((word, before[word]) for word in new & before.keys())
        new -= before.keys()
        spelled = {word: word[1:] if word[0] == FIRST else " " + word for word in new}
        fresh = self._tokenised(set(spelled.values()))
        known.update((word, fresh[text]) for word, text in spelled.items())
        found = {text: b"".join(map(known.__getitem__, words)) for text, words in split.items()}
        if len(known) > MOST:
            self._before, self._words = known, {}
        return found

    def _tokenised(self, texts: set[str]) -> dict[str, bytes]:
        """Tokens of each text, taken as a whole."""
        if not self.begins:
            return _encoded(self._backend, list(texts))
        inner = [text for text in texts if text.startswith(INNER)]
        within = _encoded(self._within, [text.removeprefix(INNER) for text in inner]) if inner else {}
        return {
            **_encoded(self._backend, list(texts.difference(inner))),
            **{text: within[text.removeprefix(INNER)] for text in inner},
        }

    @cached_property
    def _within(self) -> Any:
        """The same tokenizer, which begins nothing with a space."""
        return _unbegun_of(self._backend.to_str())


@lru_cache(maxsize=4)
def _unbegun_of(described: str) -> Any:
    """A tokenizer that begins nothing with a space, and is otherwise as it is described."""
    told = json.loads(described)
    told["pre_tokenizer"] = _unbegun(told["pre_tokenizer"])
    told["normalizer"] = _unbegun(told["normalizer"])
    return Tokenizer.from_str(json.dumps(told))


def _encoded(backend: Any, ordered: list[str]) -> dict[str, bytes]:
    """Tokens of each text by a tokenizer of the `tokenizers` library."""
    backend.no_padding()  # what a tokenizer was saved with
    backend.no_truncation()
    backend.encode_special_tokens = True
    try:
        found = backend.encode_batch_fast(ordered, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = False
    return {text: array("i", one.ids).tobytes() for text, one in zip(ordered, found, strict=True)}


def begins(backend: Any) -> Literal["first", "every"] | None:
    """What a tokenizer begins with a space that is not in the text."""
    schemes = {step["prepend_scheme"] for step in _steps(backend.pre_tokenizer) if step["type"] == "Metaspace"}
    if "always" in schemes or any(step["type"] == "Prepend" for step in _steps(backend.normalizer)):
        return "every"
    return "first" if "first" in schemes else None


def _steps(part: Any) -> list[dict[str, Any]]:
    """Of a pre-tokenizer or a normalizer, as its description has them."""
    if part is None:
        return []
    told = _state(part)
    found: list[dict[str, Any]] = told.get("pretokenizers") or told.get("normalizers") or [told]
    return found


def _unbegun(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same without what puts a space before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    for name in ("pretokenizers", "normalizers"):
        if name in part:
            return {**part, name: [step for step in map(_unbegun, part[name]) if step is not None]}
    return part


def ends_words(backend: Any) -> bool:
    """Whether a tokenizer (of the `tokenizers` library) gives the same tokens for a text and for its parts between which BETWEEN stands."""
    if backend.pre_tokenizer is None or not (backend.normalizer is None or _state(backend.normalizer)["type"] == "NFC"):
        return False
    for token in backend.get_added_tokens_decoder().values():
        if " " in token.content or token.lstrip or token.rstrip or token.single_word:
            return False
    kinds = [_ends_words(step) for step in _steps(backend.pre_tokenizer)]
    return None not in kinds and any(kinds)


def _ends_words(step: dict[str, Any]) -> bool | None:
    """Whether a step of a pre-tokenizer ends words; None if nothing is known of it."""
    if step["type"] == "Digits":
        return False
    if step["type"] == "ByteLevel":
        return None if step["add_prefix_space"] else bool(step.get("use_regex", True))
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return True if step["pattern"].get("Regex") in ENDING_WORDS else None
    return None


def _state(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(part.__getstate__())
    return found
