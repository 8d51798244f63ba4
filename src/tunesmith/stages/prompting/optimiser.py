"""Optimising a prompt by trial: candidates near the best one so far, each scored on the development rows (GPO, arXiv:2402.17564)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.base.files import read_json, write_json
from tunesmith.data.example import Example
from tunesmith.data.wording import split_words
from tunesmith.grading import Figure

from .proposers import Proposer, Situation, Trial
from .proposers.edits import changed
from .settings import Optimiser
from .way import Way

NAME = "optimised"


@dataclass(frozen=True)
class Scored:
    """A way of prompting and how it did on the development rows."""

    way: Way
    figure: Figure
    merit: float
    """The figure's value, so that more is better."""
    tokens: float
    """Of a request in the mean."""
    shortened: int
    """Requests from which examples had to be left out."""

    @property
    def rank(self) -> tuple[float, float]:
        """More is better: the score, then shorter requests."""
        return self.merit, -self.tokens


Score = Callable[[Way, str], Scored]
"""Scores a way on the development rows; the name is that of the file in which its answers are kept."""


def optimise(
    spec: Optimiser, proposer: Proposer, start: Scored, score: Score, pool: Sequence[Example], *, common: str, unit: str, seed: int, folder: Path
) -> tuple[Scored, list[dict[str, Any]]]:  # fmt: skip
    """Improve a way step by step.

    Args:
        spec: how long, and how far a step may go.
        proposer: who thinks of instructions.
        start: what to begin with.
        score: scores a way on the development rows.
        pool: what examples are taken from, and what a proposer may see.
        common: the instruction to begin with, where `start` has none.
        unit: what scores are in.
        seed: of every draw.
        folder: where proposals are kept, so that a search that was stopped goes on with the same.

    Returns:
        The best way, and of each step its limit and what was tried.
    """
    best = replace(start, way=replace(start.way, name=NAME))
    tried = [Trial(best.way.instruction or common, best.merit)]
    trajectory = []
    for step in range(spec.steps):
        generator = np.random.default_rng([seed, 2, step])
        now, limit = best.way.instruction or common, spec.limit(step)
        current = Trial(now, best.merit)
        sets = _other_examples(best.way, len(pool), spec.candidates // 2, generator)
        situation = Situation(current, _most_like(now, tried, spec.told), tuple(pool), limit, unit)
        asked = _kept(folder / f"proposals-{step + 1}.json", lambda: proposer.propose(situation, spec.candidates - len(sets), generator))  # noqa: B023  called at once  # fmt: skip
        candidates = [replace(best.way, examples=each) for each in sets]
        accepted = [text for text in dict.fromkeys(asked) if _acceptable(text, now, limit, tried)]
        candidates += [replace(best.way, instruction=text) for text in accepted]
        found = [score(way, f"{NAME}-{step + 1}-{number}") for number, way in enumerate(candidates, start=1)]
        tried += [Trial(each.way.instruction, each.merit) for each in found if each.way.instruction in accepted]
        best = max([best, *found], key=lambda each: each.rank)
        trajectory.append({"step": step + 1, "limit": limit, "refused": len(asked) - len(accepted), "tried": [_told(each, now) for each in found]})  # fmt: skip
    return best, trajectory


def _acceptable(text: str, now: str, limit: int, tried: Sequence[Trial]) -> bool:
    """Whether an instruction says something, is new, and is near enough to the current one."""
    return bool(text.strip()) and changed(now, text) <= limit and all(text != trial.instruction for trial in tried)


def _most_like(now: str, tried: Sequence[Trial], count: int) -> tuple[Trial, ...]:
    """The earlier instructions that share most words with the current one (Jaccard), the nearest last."""
    mine = set(split_words(now))

    def alike(trial: Trial) -> float:
        theirs = set(split_words(trial.instruction))
        return len(mine & theirs) / max(len(mine | theirs), 1)

    others = sorted((trial for trial in tried if trial.instruction != now), key=alike)
    return tuple(others[-count:] if count else ())


def _other_examples(way: Way, pool: int, count: int, generator: np.random.Generator) -> list[tuple[int, ...]]:
    """Example sets that differ in one place: another row, one row more or less, or two rows swapped. None where each request has its own."""
    if way.similar:
        return []
    found: dict[tuple[int, ...], None] = {}
    for _ in range(8 * count):  # draws that come to the same are drawn again
        if len(found) < count:
            found[_one_change(list(way.examples), pool, generator)] = None
    return [each for each in found if each != way.examples]


def _one_change(examples: list[int], pool: int, generator: np.random.Generator) -> tuple[int, ...]:
    others = [row for row in range(pool) if row not in examples]
    kinds = ["add"] * bool(others) + ["replace"] * bool(others and examples) + ["drop"] * bool(examples) + ["swap"] * (len(examples) > 1)  # fmt: skip
    kind = kinds[generator.integers(len(kinds))]
    if kind == "add":
        examples.insert(int(generator.integers(len(examples) + 1)), others[generator.integers(len(others))])
    elif kind == "replace":
        examples[generator.integers(len(examples))] = others[generator.integers(len(others))]
    elif kind == "drop":
        del examples[generator.integers(len(examples))]
    else:
        one, other = generator.permutation(len(examples))[:2]
        examples[one], examples[other] = examples[other], examples[one]
    return tuple(examples)


def _kept(path: Path, make: Callable[[], list[str]]) -> list[str]:
    """Proposals asked for once."""
    if not path.exists():
        write_json(path, make())
    found: list[str] = read_json(path)
    return found


def _told(found: Scored, before: str) -> dict[str, Any]:
    instruction = found.way.instruction
    return {
        "instruction": instruction,
        "examples": list(found.way.examples),
        "words_changed": changed(before, instruction) if instruction else 0,
        "score": found.figure.point,
    }
