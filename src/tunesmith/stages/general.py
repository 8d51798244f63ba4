"""The general set: everyday questions with answers, by which is measured what a fine-tuned model forgot."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from tunesmith.base import DataError
from tunesmith.data.example import Example
from tunesmith.data.intake import take_in
from tunesmith.data.ledger import Ledger
from tunesmith.data.sources import find_files

BUNDLED = "general.jsonl"


def general_files(source: str | None) -> tuple[Path, ...]:
    """The user's files that hold the set; none where it is the bundled one, or there is to be none.

    Raises:
        DataError: one is missing.
    """
    return () if source is None or source == "bundled" else find_files(source, "general")


def general_examples(source: str = "bundled") -> list[Example]:
    """The 64 bundled demonstrations, eight of each topic (`meta["topic"]` names it), or those of a file.

    Raises:
        DataError: the file or one of its rows cannot be read.
    """
    if source != "bundled":
        ledger = Ledger()
        found = [item.example for item in take_in(source, "general", ledger).items]
        if bad := next(ledger.entries(), None):  # rows that are good are not settled here
            raise DataError(
                f"evaluate.general: {bad.origin}: {bad.reason}; mend or remove the row, or give null for no check"
            )
        return found
    lines = resources.files(__package__).joinpath(BUNDLED).read_text(encoding="utf-8").splitlines()
    return [_example(number, json.loads(line)) for number, line in enumerate(lines, start=1)]


def _example(number: int, record: dict[str, Any]) -> Example:
    messages = record["messages"]
    return Example(
        f"{BUNDLED}:{number}", tuple(messages[:-1]), (tuple(messages[-1:]),), meta={"topic": record["topic"]}
    )
