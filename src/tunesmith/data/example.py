"""Example: what a person wrote, with its file and line; Row: the same as tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WEIGHT = "weight"
"""Name of the column that tells how much a row counts."""

Message = dict[str, Any]
"""One chat message in OpenAI's form: `role`, `content`, and perhaps `tool_calls`, `tool_call_id`, `name`."""


@dataclass(frozen=True)
class Example:
    """One input row in the one form that every format is turned into.

    One answer is a demonstration, two are a preference (chosen first), G are a group. An answer is a list of messages: it may
    hold several assistant turns with user or tool turns between them; what the assistant says in it is what is learnt.
    """

    origin: str
    """Where it stands: `file:line` (line from 1; record number where a file has no lines)."""
    prompt: tuple[Message, ...] = ()
    """Messages before the answer; nothing in them is learnt."""
    answers: tuple[tuple[Message, ...], ...] = ()
    """One or more continuations of the prompt."""
    text: str | None = None
    """Plain text to continue, instead of prompt and answers."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions the assistant may call, as JSON schemas in OpenAI's form."""
    columns: Mapping[str, float] = field(default_factory=dict)
    """Named numbers beside the row: label, reward, weight."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The record's other fields, for slices, stratified and group-wise splits."""
    unit: str = ""
    """What it has in common with rows that go with it, such as their author (`prepare.group`); empty where that is its origin."""

    def to_json(self) -> dict[str, Any]:
        """A JSON value, which shares what the example holds; `from_json` gives the example back."""
        return {
            "origin": self.origin,
            "prompt": self.prompt,
            "answers": self.answers,
            "text": self.text,
            "tools": self.tools,
            "columns": dict(self.columns),
            "meta": dict(self.meta),
            **({"unit": self.unit} if self.unit else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Example":
        """The example that `to_json` wrote."""
        answers = tuple(tuple(answer) for answer in value["answers"])
        return cls(**{**value, "prompt": tuple(value["prompt"]), "answers": answers, "tools": tuple(value["tools"])})

    @property
    def turn(self) -> int:
        """Where the last thing that the assistant says stands in the first answer; 0 if it says nothing."""
        answer = self.answers[0] if self.answers else ()
        return max((place for place, message in enumerate(answer) if message["role"] == "assistant"), default=0)

    @property
    def asked(self) -> tuple[Message, ...]:
        """What a model is asked whose answer is compared with `gold`: all that stands before it, earlier turns of the answer included."""
        return (*self.prompt, *(self.answers[0][: self.turn] if self.answers else ()))

    @property
    def gold(self) -> str:
        """The reference answer as text: the last thing that the assistant says in the first answer, or the plain text."""
        if self.text is not None:
            return self.text
        last = self.answers[0][self.turn] if self.answers and self.answers[0] else {}
        return str(last.get("content") or "") if last.get("role") == "assistant" else ""

    @property
    def calls(self) -> tuple[tuple[str, Any], ...]:
        """What the assistant calls where `gold` would stand: names of tools, each with its arguments; none where it says something."""
        last = self.answers[0][self.turn] if self.answers and self.answers[0] else {}
        return tuple(
            (call["function"]["name"], call["function"].get("arguments", {})) for call in last.get("tool_calls", ())
        )

    @property
    def wanted(self) -> bool:
        """Whether its answer is one to give; answers that people judged one by one may not be."""
        return bool(self.columns.get("label", 1.0))

    def strings(self) -> Iterator[str]:
        """Every text a person wrote in it, in order."""
        if self.text is not None:
            yield self.text
        for message in (*self.prompt, *(message for answer in self.answers for message in answer)):
            yield str(message.get("content") or "")


@dataclass(frozen=True)
class Sequence:
    """One token sequence of a row: the prompt and one answer."""

    tokens: np.ndarray
    """int32 [T]."""
    learn: np.ndarray
    """bool [T]: whether token t is supervised (predicted from those before it); never true at t = 0."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[supervised tokens, ...] each, float32 or integers: what is known of each token, made while training and not kept in files."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Row:
    """Tokens of one prompt and of its one or more answers."""

    origin: str
    sequences: tuple[Sequence, ...]
    columns: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    """What it is of, by `prepare.classes`; where that is several things, its class is the rarest of them."""

    @property
    def supervised(self) -> int:
        """Count of supervised tokens over all sequences."""
        return int(sum(sequence.learn.sum() for sequence in self.sequences))

    def __len__(self) -> int:
        """Length of the longest sequence in tokens."""
        return max(len(sequence) for sequence in self.sequences)
