"""How a prompt is looked for."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from tunesmith.base import Spec
from tunesmith.data.retrieval import Retriever
from tunesmith.data.retrieval.bm25 import BM25
from tunesmith.data.retrieval.embedding import Embedding

from .proposers import Proposer
from .proposers.edits import Edits


class Optimiser(Spec):
    """How instructions and examples are improved step by step (GPO, arXiv:2402.17564)."""

    steps: int = Field(3, ge=1)
    """Times that candidates are made from the best prompt so far."""
    candidates: int = Field(4, ge=1)
    """Prompts tried in a step; the paper takes 8. Where the best prompt's examples are the same for all rows, half of them change an example instead of the
    instruction."""
    words: tuple[int, int] = (50, 10)
    """Words by which a candidate's instruction may differ from the best one's, in the first and in the last step; between them a cosine (the paper's
    figures)."""
    told: int = Field(2, ge=0)
    """Prompts tried earlier that a proposer is told of beside the best one, those most like it (the paper's figure)."""

    @model_validator(mode="after")
    def _fewer_and_fewer(self) -> Self:
        if not 1 <= self.words[1] <= self.words[0]:
            raise ValueError("words falls from the first number to the second, and that is at least 1")
        return self

    def limit(self, step: int) -> int:
        """Words that may be changed in a step, counted from 0."""
        first, last = self.words
        gone = step / (self.steps - 1) if self.steps > 1 else 0.0
        return round(last + (first - last) * (1 + math.cos(math.pi * gone)) / 2)


class Prompt(Spec):
    """What is tried to get the most out of the model before any training."""

    ways: tuple[Literal["zero-shot", "random", "similar", "diverse", "optimised"], ...] = Field(
        ("zero-shot", "random", "similar", "diverse", "optimised"), min_length=1
    )
    """Ways of prompting. `zero-shot`: the prompt as it is. The next three put worked examples before it: drawn at random; those most like the row's own prompt, by
    each of `retrievers`; or far apart from each other (k-center). `optimised`: the best of the others, instruction and examples improved by trial."""
    shots: tuple[int, ...] = (4,)
    """Worked examples in a prompt; of several counts each is tried."""
    retrievers: tuple[Retriever, ...] = (BM25(), Embedding())
    """How likeness is measured; `diverse` needs an embedding."""
    development: int = Field(32, ge=2)
    """Training rows by which prompts are chosen; they are never examples, and the test rows have no part in the choice."""
    optimiser: Optimiser = Optimiser()
    """How long is searched."""
    proposer: Proposer = Edits()
    """Who thinks of other instructions."""
    measure: Literal["all", "best"] = "all"
    """Which ways answer the test rows too, to be told beside the best one; `best` saves their time."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if any(count < 1 for count in self.shots) or not self.shots:
            raise ValueError("shots are counts from 1 on; for none leave only zero-shot in ways")
        if self.ways == ("optimised",):
            raise ValueError("optimised needs another way to begin with; add zero-shot to ways")
        kinds = [each.kind for each in self.retrievers]
        if "similar" in self.ways and (not kinds or len(set(kinds)) < len(kinds)):
            raise ValueError("similar needs retrievers, each named once")
        if "diverse" in self.ways and self.embedding is None:
            raise ValueError(
                "diverse tells examples apart by an embedding; add {kind: embedding} to retrievers, or leave diverse out of ways"
            )
        return self

    @property
    def embedding(self) -> Embedding | None:
        """By which examples are told apart."""
        return next((each for each in self.retrievers if isinstance(each, Embedding)), None)

    @property
    def indexed(self) -> tuple[Retriever, ...]:
        """Retrievers that a way of prompting asks."""
        if "similar" in self.ways:
            return self.retrievers
        return (self.embedding,) if "diverse" in self.ways and self.embedding is not None else ()

    def check(self) -> None:
        """Find out before anything is computed what the ways that are tried lack.

        Raises:
            ConfigError: the proposer lacks something.
            MachineError: a retriever's package is missing.
        """
        if "optimised" in self.ways:
            self.proposer.check()
        for retriever in self.indexed:
            retriever.index(["one text"])

    def settled(self) -> Self:
        """With what depends on this installation decided."""
        return self.model_copy(update={"retrievers": tuple(each.settled() for each in self.retrievers)})
