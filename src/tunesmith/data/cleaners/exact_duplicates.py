"""Rows that say the same as an earlier one, and rows that contradict each other."""

from collections.abc import Mapping, Sequence
from typing import Literal

from ..example import Example
from ..wording import content_key, question_key
from . import NAMED, Cleaner, Drop, Findings


class ExactDuplicates(Cleaner):
    """Drops copies of earlier rows in train and validation; copies in test are counted and stay.

    Prompt and answers are compared, white space and Unicode form apart. Different answers to one prompt may be meant
    (samples of a group) or a mistake in the labels: they are named and stay.
    """

    kind: Literal["exact_duplicates"] = "exact_duplicates"

    def find(self, splits: Mapping[str, Sequence[Example]]) -> Findings:
        """Copies within each split, and prompts whose answers differ."""
        drops: list[Drop] = []
        in_test = 0
        for split, examples in splits.items():
            first: dict[str, Example] = {}
            for index, example in enumerate(examples):
                key = content_key(example)
                if key not in first:
                    first[key] = example
                elif split == "test":
                    in_test += 1
                else:
                    drops.append(Drop(split, index, f"exact duplicate: of {first[key].origin}"))
        conflicts = _conflicts([example for examples in splits.values() for example in examples])
        facts = {
            "copies_in_test": in_test,
            "conflicts": len(conflicts),
            "conflicting_rows": [[example.origin for example in group[:NAMED]] for group in conflicts[:NAMED]],
        }
        return Findings(tuple(drops), facts)


def _conflicts(examples: Sequence[Example]) -> list[list[Example]]:
    """Groups of examples with one question and different answers, one example per answer."""
    groups: dict[str, dict[str, Example]] = {}
    for example in examples:
        question = question_key(example)
        if question is not None:
            groups.setdefault(question, {}).setdefault(content_key(example), example)
    return [list(group.values()) for group in groups.values() if len(group) > 1]
