"""Special tokens of a tokenizer: found where a chat template wrote them, and kept apart from what looks like them in a person's text."""

import json
import re
from functools import cached_property
from typing import Any

from tunesmith.base import DataError


class Specials:
    """A tokenizer's special tokens, in rendered text and in what is to be rendered."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Every added token that counts as special, or that the tokenizer names as one of its special ones, by its text."""
        named = set(self.tokenizer.all_special_tokens)
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in added if token.special or token.content in named}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.numbers, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def _pattern_in_json(self) -> re.Pattern[str] | None:
        """Finds a special token in a text that JSON has escaped; None if there are none, or escaping would hide one."""
        hidden = any(json.dumps(text, ensure_ascii=False) != f'"{text}"' for text in self.numbers)
        return None if hidden or not self.numbers else self._pattern

    def pieces(self, text: str, guard: str = "") -> list[int | str]:
        """Split rendered text at its special tokens, which are recognised where the template wrote them, nowhere else."""
        parts = self._pattern.split(text) if self.numbers else [text]
        return [self.numbers.get(part, part.replace(guard, "") if guard else part) for part in parts if part]

    def guard(self, written: str) -> str:
        """A character that is nowhere in `written` (JSON), to break up what looks like a special token in a person's text; none if nothing does.

        Raises:
            DataError: all are taken.
        """
        if self._pattern_in_json is not None and not self._pattern_in_json.search(written):
            return ""
        taken = set(written)
        free = (character for character in map(chr, range(0xE000, 0xF8FF)) if character not in taken)
        found = next(free, None)
        if found is None:
            raise DataError(
                "every character from U+E000 to U+F8FE is in it, and one must be free to keep text that looks like a special token from being one; leave one out"
            )
        return found

    def guarded(self, value: Any, guard: str) -> Any:
        """`value` with the guard inside everything in its strings that a special token could be read from."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: match[0][0] + guard + match[0][1:], value) if self.numbers else value
        if isinstance(value, dict):
            return {self.guarded(name, guard): self.guarded(part, guard) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.guarded(part, guard) for part in value]
        return value
