"""A way of prompting: an instruction and worked examples, and the requests that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tunesmith.data.example import Example, Message
from tunesmith.data.retrieval import Index, Retriever, nearest
from tunesmith.models.generate import Sampling
from tunesmith.models.load import Loaded

from ..judge import after_shots, as_shots, room, said, with_shots


@dataclass(frozen=True)
class Way:
    """How rows are put to the model; examples are named by their places in the pool."""

    name: str
    instruction: str = ""
    """Stands in the place of the system message that all training rows have, before any other; empty leaves that as it is."""
    examples: tuple[int, ...] = ()
    """Worked examples that are the same in every request."""
    similar: str = ""
    """Retriever that finds the examples of each request instead."""
    shots: int = 0
    """How many it finds."""

    @property
    def about(self) -> str:
        """The way in words."""
        count = self.shots or len(self.examples)
        shots = f"{count} worked example{'s' if count > 1 else ''}"
        if self.similar:
            shots += f", those most like each row by {self.similar}"
        told = "an instruction of its own" if self.instruction else "the prompt as it is"
        return f"{told}, {shots}" if count else told


@dataclass(frozen=True)
class Requests:
    """What a way makes of some rows."""

    prompts: list[list[int]]
    """Token ids of each."""
    shortened: int
    """Rows with fewer examples than the way has, since they would not have fitted into the model's context."""

    @property
    def tokens(self) -> float:
        """Tokens of a request in the mean."""
        return float(np.mean([len(prompt) for prompt in self.prompts]))


class Prompter:
    """A model with a pool of examples, which answers rows in any way of prompting."""

    def __init__(self, loaded: Loaded, pool: Sequence[Example], retrievers: Sequence[Retriever], common: str | None, max_tokens: int) -> None:  # fmt: skip
        """Get ready.

        Args:
            loaded: the model.
            pool: rows that examples are taken from.
            retrievers: by which similar ones are found.
            common: the system message that all training rows have, if they have one.
            max_tokens: length of an answer, for which each request leaves room.
        """
        self.loaded, self.pool, self.common = loaded, pool, common
        self.sampling = Sampling(max_tokens=max_tokens)
        self.renderer = loaded.renderer()
        self.indexes: dict[str, Index] = {each.kind: each.index([question(row) for row in pool]) for each in retrievers}
        self.room = room(loaded, max_tokens)

    def answers(self, way: Way, examples: Sequence[Example]) -> list[str]:
        """A greedy answer to each row."""
        return said(self.loaded, self.requests(way, examples).prompts, self.sampling)

    def requests(self, way: Way, examples: Sequence[Example]) -> Requests:
        """The rows as tokens; where all of a way's examples do not fit, those that stand first, the least alike ones, are left out."""
        prompts, shortened = [], 0
        for example, shots in zip(examples, self._shots(way, examples), strict=True):
            prompt, left = after_shots(partial(self._prompt, way, example), shots, self.room)
            prompts.append(prompt)
            shortened += left < len(shots)
        return Requests(prompts, shortened)

    def _shots(self, way: Way, examples: Sequence[Example]) -> list[list[Example]]:
        """Each row's worked examples; the one most like it comes last (Liu et al., 2022, arXiv:2101.06804)."""
        if not way.similar:
            return [[self.pool[place] for place in way.examples]] * len(examples)
        scores_QN = self.indexes[way.similar].scores([question(example) for example in examples])
        return [[self.pool[place] for place in places[::-1]] for places in nearest(scores_QN, way.shots).tolist()]

    def _prompt(self, way: Way, example: Example, shots: Sequence[Example]) -> list[int]:
        messages = with_shots(example, as_shots(shots))
        return self.renderer.prompt(instructed(messages, way.instruction, self.common), example.tools)


def instructed(messages: Sequence[Message], instruction: str, common: str | None) -> list[Message]:
    """A conversation under an instruction, which takes the place of the common system message and stands before any other."""
    if not instruction:
        return list(messages)
    own = system_of(messages)
    text = instruction if own in (None, common) else f"{instruction}\n\n{own}"
    return [{"role": "system", "content": text}, *(each for each in messages if each["role"] != "system")]


def system_of(messages: Sequence[Message]) -> str | None:
    """The system message's text; None without one."""
    return next((str(each.get("content") or "") for each in messages if each["role"] == "system"), None)


def question(example: Example) -> str:
    """What a row is compared by: what it asks, without the system message."""
    return "\n".join(str(each.get("content") or "") for each in example.asked if each["role"] != "system")


def written(way: Way, prompter: Prompter, retriever: Retriever | None) -> dict[str, Any]:
    """A way so that a person can use it: the system text with what it replaces, and the examples as messages or how they are chosen."""
    choose = None
    if retriever is not None:
        choose = {"retriever": retriever.model_dump(mode="json"), "shots": way.shots, "from": "examples.jsonl", "most_like_last": True}  # fmt: skip
    return {
        "way": way.name,
        "about": way.about,
        "system": way.instruction or None,
        "replaces": prompter.common if way.instruction else None,
        "examples": [as_shots([prompter.pool[place]]) for place in way.examples],
        "choose": choose,
    }
