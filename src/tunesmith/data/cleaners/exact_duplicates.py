"""Rows that say the same as an earlier one, and rows that contradict each other."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..corpus import View, firsts, gathered, together
from ..example import Example
from . import NAMED, Cleaner, Drop, Findings


class ExactDuplicates(Cleaner):
    """Drops copies of earlier rows in train and validation; copies in test are counted and stay.

    Prompt and answers are compared, white space and Unicode form apart. Different answers to one prompt may be meant
    (samples of a group) or a mistake in the labels: they are named and stay.
    """

    kind: Literal["exact_duplicates"] = "exact_duplicates"

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Copies within each split, and prompts whose answers differ."""
        views = gathered(splits)
        drops: list[Drop] = []
        in_test = 0
        for split, view in views.items():
            first = firsts(view.corpus.content[view.numbers])
            copies = np.flatnonzero(first != np.arange(len(first))).tolist()
            if split == "test":
                in_test = len(copies)
            else:
                drops += [Drop(split, copy, f"exact duplicate: of {view[first[copy]].origin}") for copy in copies]
        count, named = _conflicts(together(list(views.values()))) if views else (0, [])
        return Findings(tuple(drops), {"copies_in_test": in_test, "conflicts": count, "conflicting_rows": named})


def _conflicts(view: View) -> tuple[int, list[list[str]]]:
    """How many questions have different answers; of some of them, where the first rows with each answer stand."""
    asks = np.flatnonzero(~view.corpus.plain[view.numbers])
    question, content = (firsts(keys[view.numbers[asks]]) for keys in (view.corpus.question, view.corpus.content))
    first = np.flatnonzero(content == np.arange(len(content)))  # one row per answer, in order
    _, place, counts = np.unique(question[first], return_inverse=True, return_counts=True)
    named = [asks[first[place == group][:NAMED]] for group in np.flatnonzero(counts > 1)[:NAMED]]
    return int((counts > 1).sum()), [[view[number].origin for number in group] for group in named]
