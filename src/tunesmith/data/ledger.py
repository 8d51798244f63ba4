"""The row ledger: every row that came in ends used, truncated or quarantined, and the sum is checked."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.base import ProofError

State = Literal["used", "truncated", "quarantined"]
STATES: tuple[State, ...] = ("used", "truncated", "quarantined")


@dataclass(frozen=True)
class Entry:
    """What became of one row."""

    origin: str
    """`file:line`."""
    split: str
    state: State
    reason: str | None = None
    """Why it was truncated or quarantined, `what: detail`."""
    supervised: int = 0
    """Tokens of it that are learnt."""


class Ledger:
    """Rows are entered as they come in and settled once each."""

    def __init__(self) -> None:
        self._came: list[tuple[str, str]] = []
        self._settled: dict[int, Entry] = {}

    def enter(self, origin: str, split: str) -> int:
        """Note a row that came in; its number is what it is settled by."""
        self._came.append((origin, split))
        return len(self._came) - 1

    def settle(
        self, row: int, state: State, reason: str | None = None, *, split: str | None = None, supervised: int = 0
    ) -> None:
        """Say what became of a row.

        Raises:
            ProofError: it was settled before.
        """
        origin, came_by = self._came[row]
        if row in self._settled:
            raise ProofError(f"{origin}: was settled twice in the row ledger, first as {self._settled[row].state}")
        self._settled[row] = Entry(origin, split or came_by, state, reason, supervised)

    def check(self) -> None:
        """Rows in = used + truncated + quarantined.

        Raises:
            ProofError: a row was lost.
        """
        lost = [origin for row, (origin, _) in enumerate(self._came) if row not in self._settled]
        if lost:
            raise ProofError(
                f"{lost[0]}: came in and is neither used, truncated nor quarantined; {len(lost)} rows were lost"
            )

    def entries(self) -> list[Entry]:
        """Every settled row in the order of coming in."""
        return [self._settled[row] for row in sorted(self._settled)]

    def counts(self, split: str | None = None) -> dict[str, Any]:
        """`rows`, then how many ended in each state, and per reason; of one split or of all."""
        entries = [entry for entry in self.entries() if split in (None, entry.split)]
        states = Counter(entry.state for entry in entries)
        return {"rows": len(entries), **{state: states[state] for state in STATES}, "reasons": self.reasons(entries)}

    @staticmethod
    def reasons(entries: Iterable[Entry]) -> dict[str, int]:
        """How many entries give each reason, the commonest first."""
        return dict(Counter(label(entry.reason) for entry in entries if entry.reason).most_common())

    def by_file_split(self) -> dict[str, list[Entry]]:
        """Settled rows by what the file they came in with is for, whichever side they were split off to."""
        found: dict[str, list[Entry]] = {}
        for row in sorted(self._settled):
            found.setdefault(self._came[row][1], []).append(self._settled[row])
        return found

    def write(self, path: Path) -> None:
        """One JSON object per row, in the order of coming in."""
        self.check()
        with path.open("w", encoding="utf-8") as file:
            for entry in self.entries():
                file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")


def label(reason: str) -> str:
    """What rows with this reason have in common: what stands before the colon or semicolon."""
    return reason.partition(": ")[0].partition("; ")[0]
