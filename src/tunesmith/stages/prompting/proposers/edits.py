"""Edits: the instruction's own sentences are dropped, swapped and doubled, and sentences about the form of the answers are put in (after GrIPS, arXiv:2203.07281)."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tunesmith.data.example import Example
from tunesmith.grading.reading import read_object

from .base import Proposer, Situation

MOST = 12
"""Different answers, or values of a key, that are listed in a sentence."""
PLAIN = (
    "Give only the answer, without explanation.",
    "Keep exactly to the form of the examples.",
    "Read the whole question before you answer.",
)


class Edits(Proposer):
    """Needs no other model: whatever comes out is chosen by its score. It finds a form of words, not a new idea."""

    kind: Literal["edits"] = "edits"

    def propose(self, situation: Situation, count: int, generator: np.random.Generator) -> list[str]:
        """As many different edits, the operators drawn alike often."""
        ways = operations(sentences(situation.current.instruction), templates(situation.examples))
        found: dict[str, None] = {}
        while ways and len(found) < count:
            name = list(ways)[generator.integers(len(ways))]
            edited = ways[name].pop(generator.integers(len(ways[name])))
            if changed(situation.current.instruction, edited) <= situation.limit:
                found[edited] = None
            ways = {name: rest for name, rest in ways.items() if rest}
        return list(found)


def sentences(text: str) -> list[str]:
    """A text's sentences and lines."""
    return [part for part in re.split(r"(?<=[.!?:])\s+|\n+", text.strip()) if part]


def operations(parts: list[str], new: Sequence[str]) -> dict[str, list[str]]:
    """Per operator every instruction that it makes of these sentences."""
    places = range(len(parts))
    made = {
        "drop": [parts[:place] + parts[place + 1 :] for place in places],
        "swap": [[*parts[:one], parts[one + 1], parts[one], *parts[one + 2 :]] for one in places[:-1]],
        "double": [[*parts, parts[place]] for place in places],
        "append": [[*parts, sentence] for sentence in new if sentence not in parts],
        "prepend": [[sentence, *parts] for sentence in new if sentence not in parts and parts],
    }
    return {name: [" ".join(each) for each in found] for name, found in made.items() if found}


def templates(examples: Sequence[Example]) -> list[str]:
    """Sentences about what answers look like, from those of these rows."""
    golds = [example.gold.strip() for example in examples]
    objects = [read_object(gold, "strict") for gold in golds]
    if objects and all(found is not None for found in objects):
        return [*_of_objects([found for found in objects if found is not None]), *PLAIN]
    if labels := _few(golds):
        return [f"Answer with exactly one of: {', '.join(labels)}.", *PLAIN]
    longest = max((len(gold.split()) for gold in golds), default=1)
    return [f"Answer in at most {longest} words.", *PLAIN]


def _of_objects(objects: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for found in objects for key in found))
    same = all(set(found) == set(keys) for found in objects)
    which = f"the {'key' if len(keys) == 1 else 'keys'} {', '.join(keys)}" if same else "the keys that are asked for"
    values = {key: _few([str(found[key]) for found in objects if key in found]) for key in keys}
    told = [f"The value of {key} is one of: {', '.join(each)}." for key, each in values.items() if each]
    return [f"Answer with one JSON object with {which}, and nothing else.", *told]


def _few(values: Sequence[str]) -> list[str]:
    """Different values, sorted, where they are so few that they look like classes."""
    found = sorted(set(values))
    return found if len(found) <= MOST and 2 * len(found) <= len(values) else []


def changed(before: str, after: str) -> int:
    """Words put in, taken out or replaced between two texts, at least (Levenshtein 1966)."""
    first, second = before.split(), after.split()
    row = list(range(len(second) + 1))
    for place, word in enumerate(first, start=1):
        above, row = row, [place]
        for column, other in enumerate(second):
            row.append(min(row[column] + 1, above[column + 1] + 1, above[column] + (word != other)))
    return row[-1]
