"""Rollouts: batches of answers that the model itself samples, each with what it earned."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field, field_validator

from tunesmith.base import ModelError, Spec
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Row
from tunesmith.data.example import Sequence as Tokens
from tunesmith.data.render import Ids
from tunesmith.grading import Grader, Paying
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.base import OLD, START, TOKEN_COLUMNS, VALUE, reward
from tunesmith.models.generate import Completion, Sampling, generate
from tunesmith.models.load import Loaded

from .batches import Dataset
from .reference import Back, with_token_logps, with_token_values


class Reward(Spec):
    """One thing that an answer is paid for."""

    grader: Grader
    """What judges an answer; it earns the share that is right, from 0 to 1, or what a reward model says, on a scale of its own."""
    weight: float = 1.0
    """What a wholly right answer earns; below 0 it costs."""

    @field_validator("grader")
    @classmethod
    def _grades_one_answer(cls, grader: Grader) -> Grader:
        if not isinstance(grader, Paying):
            raise ValueError(f"{grader.called} cannot judge one answer by itself")
        return grader


class Tries(Spec):
    """How often a model answers a prompt, and what its answers earn."""

    rewards: tuple[Reward, ...] = Field(min_length=1)
    """What an answer earns is the sum of these."""
    samples: int = Field(8, ge=1)
    """Answers to each prompt (G in the GRPO paper, which takes 64); objectives that compare them need two."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer; a longer one is cut off and judged as it is."""

    def earned(self, answers: Sequence[str], examples: Sequence[Example]) -> list[list[float]]:
        """What each answer earns by each reward; each answers the example beside it.

        Raises:
            ModelError: that is not finite, and neither more nor less than what others earn.
        """
        by_reward = [
            [each.weight * worth for worth in each.grader.worth(answers, examples)]
            for each in self.rewards
            if isinstance(each.grader, Paying)
        ]
        earned = [list(paid) for paid in zip(*by_reward, strict=True)]
        for paid, example in zip(earned, examples, strict=True):
            for worth, each in zip(paid, self.rewards, strict=True):
                if not math.isfinite(worth):
                    raise ModelError(
                        f"{example.origin}: what {each.grader.called} says an answer is worth is not finite; mend the grader, or the model that it asks"
                    )
        return earned


class Rollouts(Tries):
    """How the model's own answers are sampled, from its own distribution (temperature 1), and what they earn."""

    unfinished: float = Field(0.0, ge=0)
    """What is taken off an answer that was cut off; right or not, it never learnt to stop."""
    updates: int = Field(1, ge=1)
    """Optimizer steps on the same answers (mu in the GRPO paper); 1 always learns from the model as it is."""


def imagined(rows: Sequence[Row], spec: Rollouts) -> list[Row]:
    """Rows of the shape that rollouts will have at most, for estimates: each prompt with its answers, no two alike."""
    found = []
    for row in rows:
        whole = row.sequences[0]
        turns = np.flatnonzero(np.diff(whole.learn.astype(np.int8), prepend=0) == 1)  # the last one is asked for
        prompt = whole.tokens[: turns[-1] if len(turns) else 0]
        learn = np.arange(len(prompt) + spec.max_tokens) >= len(prompt)
        answers = (np.full(spec.max_tokens, number, dtype=np.int32) for number in range(spec.samples))
        blank = dict.fromkeys(TOKEN_COLUMNS, np.zeros(spec.max_tokens, dtype=np.float32))
        sequences = tuple(Tokens(np.concatenate([prompt, answer]), learn, blank) for answer in answers)
        columns = {reward(number): float(number) for number in range(spec.samples)}
        found.append(Row(row.origin, sequences, columns))
    return found


@dataclass(frozen=True)
class Sampled(Dataset):
    """Prompts whose answers are sampled, several optimizer steps on each."""

    spec: Rollouts = field(kw_only=True)

    @property
    def repeats(self) -> int:
        """Optimizer steps on the same rows."""
        return self.spec.updates


@dataclass(frozen=True)
class OnPolicy(Sampled):
    """Prompts in shuffled epochs; a step's rows are answered by the model as it is when the step is asked for.

    What is drawn depends on (seed, step, prompt, sample) and the weights alone, so nothing needs to be saved between the steps that
    `settled` names.
    """

    loaded: Loaded = field(kw_only=True)
    examples: Sequence[Example] = field(kw_only=True)
    """Of each row: what its prompt says and what graders compare with."""
    start: Back | None = field(kw_only=True, default=None)
    """Makes the model the one that training holds it to, where the objective asks for their log-probabilities."""
    objective: Objective | None = field(kw_only=True, default=None)
    """What learns from the answers, where it needs more of them than what they earned."""
    facts: dict[str, float] = field(default_factory=dict)

    def from_step(self, first: int) -> Iterator[list[Batch]]:
        """The steps from `first`, which is a settled one, to the end."""
        rows: list[Row] = []
        for number in range(first, self.steps):
            if self.settled(number):
                rows = self.roll(number)
            yield self.cut(rows)

    def roll(self, number: int) -> list[Row]:
        """A step's prompts, each with sampled answers and what they earned."""
        began = time.monotonic()
        places = self.chosen(number)
        renderer = self.loaded.renderer()
        prompts = [renderer.prompt(self.examples[place].asked, self.examples[place].tools) for place in places]
        answers = self._sample(number, prompts)
        every = [answer for mine in answers for answer in mine]
        asked = [self.examples[place] for place in places for _ in range(self.spec.samples)]
        earned = self.spec.earned([answer.text.strip() for answer in every], asked)
        totals = iter(
            sum(paid) - self.spec.unfinished * (answer.finish != "stop")
            for paid, answer in zip(earned, every, strict=True)
        )
        rows = []
        for place, prompt, mine in zip(places, prompts, answers, strict=True):
            columns = {reward(sample): next(totals) for sample in range(len(mine))}
            sequences = tuple(continued(prompt, answer) for answer in mine)
            rows.append(Row(self.rows[place].origin, sequences, columns))
        self._note(rows, earned, every, time.monotonic() - began)
        rows = self._measured(rows)
        return rows if self.objective is None else list(self.objective.credited(rows))

    def _sample(self, number: int, prompts: Sequence[Ids]) -> list[list[Completion]]:
        """Answers to each prompt, which is read once."""
        count = self.spec.samples
        samplings = [
            Sampling(max_tokens=self.spec.max_tokens, temperature=1.0, seed=seed_of(self.seed, number, place, sample))
            for place in range(len(prompts))
            for sample in range(count)
        ]
        answers = generate(self.loaded, [prompt for prompt in prompts for _ in range(count)], samplings)
        return [answers[start : start + count] for start in range(0, len(answers), count)]

    def _measured(self, rows: list[Row]) -> list[Row]:
        """The rows with the log-probabilities that the objective will compare with."""
        if self.objective is not None and self.objective.head:
            rows = with_token_values(self.loaded, rows, (OLD, VALUE), self.micro_batch)
        elif self.spec.updates > 1:
            rows = with_token_logps(self.loaded, rows, OLD, self.micro_batch)
        if self.start is not None:
            with self.start():
                rows = with_token_logps(self.loaded, rows, START, self.micro_batch)
        return rows

    def _note(
        self, rows: Sequence[Row], earned: Sequence[Sequence[float]], answers: Sequence[Completion], seconds: float
    ) -> None:
        """What this step's answers were like."""
        groups = np.array([list(row.columns.values()) for row in rows])
        names = [each.grader.called for each in self.spec.rewards]
        parts = {
            f"reward_{name}" + (f"_{number}" if names.count(name) > 1 else ""): float(
                np.mean([paid[number] for paid in earned])
            )
            for number, name in enumerate(names)
        }
        self.facts.update(
            reward=float(groups.mean()),
            reward_spread=float(groups.std(1).mean()),
            answer_tokens=float(np.mean([len(answer.tokens) for answer in answers])),
            sampled_tokens=sum(len(answer.tokens) for answer in answers),
            finished=float(np.mean([answer.finish == "stop" for answer in answers])),
            sampling_seconds=round(seconds, 4),
            **(parts if len(parts) > 1 else {}),
        )


def continued(prompt: Ids, answer: Completion) -> Tokens:
    """A prompt with a sampled answer, every token of which is learnt from."""
    tokens = np.array([*prompt, *answer.tokens], dtype=np.int32)
    return Tokens(tokens, np.arange(len(tokens)) >= len(prompt))


def seed_of(*parts: int) -> int:
    """One number that stands for all of them."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
