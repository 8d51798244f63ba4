"""Which rows prompts are chosen by, and which examples stand in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.base import DataError
from tunesmith.data.example import Example
from tunesmith.data.retrieval import Index
from tunesmith.data.wording import read

from .settings import Prompt
from .way import Way


@dataclass(frozen=True)
class Divided:
    """Training rows for two uses; none asks what another, or a test row, asks, and none of a unit (`prepare.group`) has the other use."""

    pool: list[Example]
    """What examples are taken from."""
    development: list[Example]
    """What prompts are scored on."""


def divide(train: Sequence[Example], test: Sequence[Example], development: int, shots: int, seed: int) -> Divided:
    """Draw the development rows.

    Args:
        train: the training rows.
        test: all test rows.
        development: how many to draw.
        shots: how many rows must be left to take examples from.
        seed: of the draw.

    Raises:
        DataError: rows ask nothing, or there are too few.
    """
    if any(example.text is not None for example in (*train, *test)):
        raise DataError(
            "prompt: plain text asks for no answer, so no prompt can be better; give rows of prompt and answer"
        )
    taken = {_asks(example) for example in test}
    wanted = [example for example in train if example.wanted]  # answers that were refused teach nothing
    different = {_asks(example): example for example in reversed(wanted)}
    left = [example for key, example in reversed(different.items()) if key not in taken]
    if len(left) < development + shots:
        raise DataError(
            f"prompt: {len(left)} of {len(train)} training rows ask something of their own; prompt.development={development} and prompt.shots up to {shots} "
            "need more: lower them, or give more rows"
        )
    found = _apart(left, development, seed)
    if len(found.pool) < shots:
        raise DataError(
            f"prompt: prompt.development={development} rows leave {len(found.pool)} that go with none of them by prepare.group, and prompt.shots up to "
            f"{shots} need more: lower them, or give rows of more groups"
        )
    return found


def _apart(left: Sequence[Example], development: int, seed: int) -> Divided:
    """Units in an order that is drawn: of the first as many rows as are wanted, and all units of which none is among these."""
    units: dict[str, list[Example]] = {}
    for example in left:
        units.setdefault(_unit(example), []).append(example)
    rows, order = list(units.values()), np.random.default_rng([seed, 0]).permutation(len(units)).tolist()
    drawn = [example for place in order for example in rows[place]]
    chosen = drawn[:development]
    theirs = {_unit(example) for example in chosen}  # what is left of the last one has neither use
    return Divided([example for example in drawn[development:] if _unit(example) not in theirs], chosen)


def _unit(example: Example) -> str:
    return example.unit or example.origin


def _asks(example: Example) -> bytes:
    """What a row asks, capitals and punctuation apart: what the cleaner `leakage` goes by."""
    return read(example)[1][1]


def ways(spec: Prompt, pool: int, indexes: Mapping[str, Index], seed: int) -> list[Way]:
    """Every way that needs no search, with examples from a pool of so many rows, indexed by each retriever."""
    found = [Way("zero-shot")] if "zero-shot" in spec.ways else []
    if "random" in spec.ways:
        drawn = np.random.default_rng([seed, 1]).permutation(pool)[: max(spec.shots)].tolist()
        found += [Way(_called("random", count, spec), examples=tuple(drawn[:count])) for count in spec.shots]
    if "similar" in spec.ways:
        found += [
            Way(_called(each.kind, count, spec), similar=each.kind, shots=count)
            for each in spec.retrievers
            for count in spec.shots
        ]
    vectors_ND = indexes[spec.embedding.kind].vectors_ND if spec.embedding is not None and indexes else None
    if "diverse" in spec.ways and vectors_ND is not None:
        far = centers(vectors_ND, max(spec.shots))
        found += [Way(_called("diverse", count, spec), examples=tuple(far[:count])) for count in spec.shots]
    return found


def _called(name: str, count: int, spec: Prompt) -> str:
    return f"{name}, {count} shots" if len(spec.shots) > 1 else name


def centers(vectors_ND: NDArray[np.float64], count: int) -> list[int]:
    """Greedy k-center (Gonzalez 1985): first the vector nearest to the mean, then time and again the one farthest from all chosen."""
    first = int((vectors_ND @ vectors_ND.mean(axis=0)).argmax())
    chosen, apart_N = [first], np.full(len(vectors_ND), np.inf)
    while len(chosen) < min(count, len(vectors_ND)):
        apart_N = np.minimum(apart_N, 1 - vectors_ND @ vectors_ND[chosen[-1]])
        apart_N[chosen] = -np.inf
        chosen.append(int(apart_N.argmax()))
    return chosen
