"""What answers from retrieved passages are worth, without a judge: accuracy, completeness and grounding (after Fine-Tuning or Fine-Failing, arXiv:2406.11201).

Texts are compared by their normalised words, as SQuAD does (Rajpurkar et al., 2016, arXiv:1606.05250): lower case, no punctuation, no articles.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tunesmith.data.documents import Question

from .statistics import Figure, difference, interval, share

Match = Literal["contained", "exact", "f1"]
ARTICLES = frozenset({"a", "an", "the"})
FUNCTION = frozenset(
    """
    about after all also am and any are as at be because been before being between both but by can could did do does for from had has have he
    her him his how i if in into is it its may me might more most must my no not of on only or other our over said says she should so some such
    than that their them then there these they this those through to under up us was we were what when where which while who whom whose why will
    with would you your
    """.split()  # noqa: SIM905  a text is easier to read
)
"""English words that say nothing by themselves. In other languages all words count."""


@dataclass(frozen=True)
class Asked:
    """A question as it was put to every system, with the passages that a retriever found for it."""

    question: Question
    passages: tuple[str, ...]
    found: bool
    """Whether the passages hold what is needed to answer."""


def normal(text: str) -> list[str]:
    """A text's words: Unicode NFKC, lower case, without punctuation, symbols and articles."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(letter for letter in plain if unicodedata.category(letter)[0] not in "PS")
    return [word for word in kept.split() if word not in ARTICLES]


def content(text: str) -> list[str]:
    """Its normalised words without English function words."""
    return [word for word in normal(text) if word not in FUNCTION]


def contains(text: str, wanted: str) -> bool:
    """Whether the normalised words of `wanted` stand in `text`, next to each other and in order."""
    run = normal(wanted)
    return bool(run) and f" {' '.join(run)} " in f" {' '.join(normal(text))} "


def accuracy(answer: str, asked: Asked, match: Match = "contained") -> float:
    """How right an answer is, from 0 to 1: the best over the right answers of

    * `contained`: 1 if the right answer's normalised words stand in it next to each other and in order, else 0;
    * `exact`: 1 if its normalised words are the right answer's, else 0;
    * `f1`: twice the words in common over the words of both, repeated ones counted as often as both have them.
    """
    ways: dict[str, Callable[[str], float]] = {
        "contained": lambda gold: float(contains(answer, gold)),
        "exact": lambda gold: float(normal(answer) == normal(gold)),
        "f1": lambda gold: _overlap(normal(answer), normal(gold)),
    }
    return max(map(ways[match], asked.question.answers))


def _overlap(first: Sequence[str], second: Sequence[str]) -> float:
    common = sum((Counter(first) & Counter(second)).values())
    return 2 * common / max(len(first) + len(second), 1)


def completeness(answer: str, asked: Asked) -> float:
    """How much of what was to be said is there, from 0 to 1: the share of the question's facts that the answer contains; without facts, the share of the
    different content words of a right answer (the best over these; all words, where none is a content word) that stand in it."""
    if asked.question.facts:
        return float(np.mean([contains(answer, fact) for fact in asked.question.facts]))
    said = set(normal(answer))
    wanted = [set(content(gold)) or set(normal(gold)) for gold in asked.question.answers]
    return max(len(each & said) / max(len(each), 1) for each in wanted)


def grounding(answer: str, asked: Asked) -> float | None:
    """How much of an answer comes from the passages, from 0 to 1: the share of its content words, those of the question left out, that stand in one of the passages; a
    repeated word counts each time. None where there is no such word."""
    given, question = set(normal(" ".join(asked.passages))), set(normal(asked.question.text))
    claimed = [word for word in content(answer) if word not in question]
    return float(np.mean([word in given for word in claimed])) if claimed else None


def figures(answers: Sequence[str], rows: Sequence[Asked], match: Match) -> dict[str, Figure]:
    """Each measure's mean over questions, in percent; one without anything to ground says nothing of grounding."""
    pairs = list(zip(answers, rows, strict=True))
    values: dict[str, list[float | None]] = {
        "accuracy": [accuracy(answer, asked, match) for answer, asked in pairs],
        "completeness": [completeness(answer, asked) for answer, asked in pairs],
        "grounding": [grounding(answer, asked) for answer, asked in pairs],
    }
    return {name: _figure(found) for name, found in values.items()}


def _figure(values: Sequence[float | None]) -> Figure:
    pairs = [(0.0, 0.0) if value is None else (value, 1.0) for value in values]
    return Figure(np.array(pairs, dtype=np.float64), share, top=100.0)


def compared(
    rows: Sequence[Asked], base: Sequence[str], tuned: Sequence[str], match: Match, seed: int
) -> dict[str, Any]:
    """What tuning did to answers from the same passages.

    Returns:
        A JSON value: `questions`, `recall` (share of questions whose passages hold what is needed), `measures`: of each `base` and `tuned`, and their paired `difference`
        (None where nobody said anything), and `accuracy_where`: accuracy where the passages held what is needed (`found`) and where not (`missed`).
    """
    first, second = figures(base, rows, match), figures(tuned, rows, match)
    found = np.array([asked.found for asked in rows])
    recall = interval(_figure(found.astype(float).tolist()), seed=seed).to_json()
    where = {
        name: {
            system: interval(each["accuracy"].take(np.flatnonzero(chosen)), seed=seed).to_json()
            for system, each in (("base", first), ("tuned", second))
        }
        for name, chosen in (("found", found), ("missed", ~found))
        if chosen.any()
    }
    measures = {name: _beside(first[name], second[name], seed) for name in first}
    return {"questions": len(rows), "match": match, "recall": recall, "measures": measures, "accuracy_where": where}


def _beside(base: Figure, tuned: Figure, seed: int) -> dict[str, Any]:
    if not (base.rows and tuned.rows):
        return {"base": None, "tuned": None, "difference": None}
    return {
        "base": interval(base, seed=seed).to_json(),
        "tuned": interval(tuned, seed=seed).to_json(),
        "difference": difference(tuned, base, seed=seed).to_json(),
    }
