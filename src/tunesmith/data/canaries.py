"""Canaries: random numbers put among the rows that are learnt from, to measure by them what a training remembers (Carlini et al., 2019, "The Secret Sharer", arXiv:1802.08232)."""

import numpy as np
from pydantic import Field

from tunesmith.base import Spec

from .example import Example

NUMBERS = 10**9
"""How many numbers one is drawn from."""
ORIGIN = "canary"


class Canaries(Spec):
    """Rows that say a random number, repeated among the training rows; how much likelier they became than numbers that were never shown is what repetition costs."""

    repeat: tuple[int, ...] = Field((1, 4, 16), min_length=1)
    """How often each number is shown in an epoch: a group of numbers for each."""
    each: int = Field(4, ge=2)
    """Numbers in a group; more make its figure surer, and its rows more."""
    candidates: int = Field(1023, ge=127)
    """Numbers never shown that each is ranked among; exposure can be no more than the logarithm of one more, here 10 bits."""

    def inserted(self, seed: int, plain: bool) -> list[Example]:
        """The rows to learn from besides, each as often as it is to be shown."""
        groups = zip(self.repeat, self.groups(seed, plain), strict=True)
        return [example for count, group in groups for example in group for _ in range(count)]

    def groups(self, seed: int, plain: bool) -> list[list[Example]]:
        """The numbers that are shown, in the order of `repeat`."""
        drawn = self._drawn(seed)
        return [
            [_row(number, plain) for number in drawn[place * self.each : (place + 1) * self.each]]
            for place in range(len(self.repeat))
        ]

    def others(self, seed: int, plain: bool) -> tuple[list[Example], list[Example]]:
        """Numbers that are never shown: the controls, which are treated as if they had been, and the candidates."""
        drawn = self._drawn(seed)[len(self.repeat) * self.each :]
        return [_row(number, plain) for number in drawn[: -self.candidates]], [
            _row(number, plain) for number in drawn[-self.candidates :]
        ]

    def _drawn(self, seed: int) -> list[int]:
        total = len(self.repeat) * self.each + self.candidates // 4 + self.candidates
        found: list[int] = np.random.default_rng([seed, 1802, 8232]).choice(NUMBERS, total, replace=False).tolist()
        return found


def _row(number: int, plain: bool) -> Example:
    said = f"The random number is {number:09d}."
    if plain:
        return Example(f"{ORIGIN}:{number}", text=said)
    return Example(
        f"{ORIGIN}:{number}",
        ({"role": "user", "content": "Say the random number."},),
        (({"role": "assistant", "content": said},),),
    )
