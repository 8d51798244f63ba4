"""The row ledger: every row that came in ends used, truncated, quarantined or unchosen, and the sum is checked."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tunesmith.base import ProofError
from tunesmith.base.secrets import from_environment, redacted

State = Literal["used", "truncated", "quarantined", "unchosen"]
STATES: tuple[State, ...] = ("used", "truncated", "quarantined", "unchosen")
"""A row is unchosen that could be learnt from and is not to be; only `prepare.select` leaves such."""


@dataclass(frozen=True)
class Entry:
    """What became of one row."""

    origin: str
    """`file:line`."""
    split: str
    state: State
    reason: str | None = None
    """Why it is not used as it is, `what: detail`."""
    supervised: int = 0
    """Tokens of it that are learnt."""


class Words:
    """Few different texts that stand for many rows: each is held once, and known by its number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        found = self._numbers.setdefault(text, len(self.texts))
        if found == len(self.texts):
            self.texts.append(text)
        return found


class Ledger:
    """Rows are entered as they come in and settled once each; a row takes some thirty bytes, and what its reason takes."""

    def __init__(self) -> None:
        self._words, self._secrets = Words(), from_environment()
        self._file, self._line = array("i"), array("q")
        self._came, self._split, self._state = array("i"), array("i"), bytearray()
        self._supervised = array("q")
        self._reasons: dict[int, int] = {}

    def enter(self, origin: str, split: str) -> int:
        """Note a row that came in; its number is what it is settled by."""
        file, _, line = origin.rpartition(":")
        numbered = line.isascii() and line.isdigit() and str(int(line)) == line
        self._file.append(self._words.number(file if numbered else origin))
        self._line.append(int(line) if numbered else -1)
        self._came.append(self._words.number(split))
        self._split.append(self._came[-1])
        self._state.append(0)
        self._supervised.append(0)
        return len(self._state) - 1

    def settle(
        self, row: int, state: State, reason: str | None = None, *, split: str | None = None, supervised: int = 0
    ) -> None:
        """Say what became of a row.

        Raises:
            ProofError: it was settled before.
        """
        if self._state[row]:
            first = STATES[self._state[row] - 1]
            raise ProofError(f"{self._origin(row)}: was settled twice in the row ledger, first as {first}")
        self._state[row] = STATES.index(state) + 1
        self._supervised[row] = supervised
        if split:
            self._split[row] = self._words.number(split)
        if reason is not None:
            self._reasons[row] = self._words.number(redacted(reason, self._secrets))

    def check(self) -> None:
        """Rows in = used + truncated + quarantined + unchosen.

        Raises:
            ProofError: a row was lost.
        """
        lost = self._state.count(0)
        if lost:
            raise ProofError(
                f"{self._origin(self._state.index(0))}: came in and is neither used, truncated, quarantined nor unchosen; {lost} rows were lost"
            )

    def entries(self, *, came_by: str | None = None) -> Iterator[Entry]:
        """Every settled row in the order of coming in; or those that came in with the files for one split."""
        wanted = None if came_by is None else self._words.number(came_by)
        for row, state in enumerate(self._state):
            if state and wanted in (None, self._came[row]):
                yield self._entry(row)

    def came(self) -> list[str]:
        """What the files that rows came in with are for, in the order of coming in."""
        return [self._words.texts[number] for number in dict.fromkeys(self._came)]

    def counts(self, split: str | None = None, *, came_by: str | None = None) -> dict[str, Any]:
        """`rows`, then how many ended in each state (`unchosen` only if some did), and how many give each reason, the commonest first.

        Args:
            split: only rows that ended in this split.
            came_by: only rows that came in with the files for this split, whichever side they were split off to.
        """
        state = np.array(self._state)
        chosen = state > 0
        for name, held in ((split, self._split), (came_by, self._came)):
            if name is not None:
                chosen &= np.array(held) == self._words.number(name)
        states = np.bincount(state[chosen], minlength=len(STATES) + 1).tolist()[1:]
        texts = (self._words.texts[self._reasons[row]] for row in sorted(self._reasons) if chosen[row])
        reasons = Counter(label(text) for text in texts if text)
        counted: dict[str, Any] = {
            state: count for state, count in zip(STATES, states, strict=True) if count or state != "unchosen"
        }
        return {"rows": sum(states), **counted, "reasons": dict(reasons.most_common())}

    def write(self, path: Path) -> None:
        """One JSON object per row, in the order of coming in."""
        self.check()
        with path.open("w", encoding="utf-8") as file:
            for entry in self.entries():
                file.write(json.dumps(vars(entry), ensure_ascii=False) + "\n")

    def _origin(self, row: int) -> str:
        file = self._words.texts[self._file[row]]
        return file if self._line[row] < 0 else f"{file}:{self._line[row]}"

    def _entry(self, row: int) -> Entry:
        reason = self._reasons.get(row)
        return Entry(
            self._origin(row),
            self._words.texts[self._split[row]],
            STATES[self._state[row] - 1],
            None if reason is None else self._words.texts[reason],
            self._supervised[row],
        )


def label(reason: str) -> str:
    """What rows with this reason have in common: what stands before the colon or semicolon."""
    return reason.partition(": ")[0].partition("; ")[0]
