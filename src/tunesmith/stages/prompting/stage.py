"""The stage: every way of prompting scored on development rows, the best one chosen by that, and what it is worth on the test rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from tunesmith.base import Artifact, ConfigError, Output, Stage
from tunesmith.base.files import write_atomic, write_json
from tunesmith.base.proof import Proof
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.grading import HEADLINE, Grader
from tunesmith.grading.statistics import interval
from tunesmith.models.load import Precision, load, served

from ..finetune import Finetune
from ..judge import kept
from .choice import Divided, divide, ways
from .optimiser import NAME, Scored, optimise
from .settings import Prompt
from .way import Prompter, Way, system_of, written


@dataclass
class Trying:
    """Scores ways on the development rows, and never sees the test rows."""

    prompter: Prompter
    development: list[Example]
    grader: Grader
    out: Output

    def score(self, way: Way, name: str) -> Scored:
        """Answer the development rows, or take the answers that an earlier attempt kept."""
        answers = kept(self.out, name, lambda: self.prompter.answers(way, self.development), "development")  # fmt: skip
        figure = self.grader.graded(self.development, answers)[HEADLINE]
        asked = self.prompter.requests(way, self.development)
        merit = figure.point if self.grader.better == "higher" else -figure.point
        return Scored(way, figure, merit, asked.tokens, asked.shortened)


def prompt(
    spec: Prompt, prepared: Artifact, *, out: Output, model: str, precision: Precision, graders: list[dict[str, Any]], rows: int | None,
    max_tokens: int, seed: int, learnt: int | None = None,
) -> None:  # fmt: skip
    """Write `prompt.json` (the best prompt, for people and programs), `results.json` (every way with its scores), `trajectory.json`, all answers and the proof.

    `learnt` is how many rows a training learns from, if not all: as `finetune.rows`.

    Raises:
        ConfigError: no grader judges answers, or the proposer lacks something.
        DataError: there are too few training rows.
    """
    grader, divided = check(spec, prepared, TypeAdapter(tuple[Grader, ...]).validate_python(graders), seed, learnt)
    systems = {system_of(example.prompt) for example in load_examples(prepared.path, "train")}
    common = next(iter(systems)) if len(systems) == 1 else None
    prompter = Prompter(
        load(model, served(precision), today=rendered_on(prepared.path)), divided.pool, spec.indexed, common, max_tokens
    )
    found, trajectory = _tried(spec, prompter, Trying(prompter, divided.development, grader, out), seed)
    best = max(found, key=lambda each: each.rank)
    every, test = load_examples(prepared.path, "test"), load_examples(prepared.path, "test", rows)
    told = [_told(each, each is best) for each in found]
    for each, about in zip(found, told, strict=True):
        if test and (each is best or spec.measure == "all"):
            about.update(_tested(each.way, prompter, test, grader, out, seed))
    about = {
        "grader": grader.called,
        "unit": grader.unit,
        "digits": grader.digits,
        "rows": _counts(divided, test),
        **_made_by(spec, prompter),
    }
    _write(out, spec, prompter, best, {**about, "ways": told})
    write_json(out / "trajectory.json", trajectory)
    _prove(divided, every, trajectory).write(out / "proof.json")
    out.metrics.update({**about, "ways": told})


def check(
    spec: Prompt, prepared: Artifact, graders: Sequence[Grader], seed: int, learnt: int | None = None
) -> tuple[Grader, Divided]:
    """By what prompts are judged, and on which rows: the first grader that judges answers; no model is loaded for it.

    A training on a part of the rows is compared with prompts that know the same part.

    Raises:
        ConfigError: there is no such grader, or the proposer lacks something.
        DataError: there are too few training rows.
        MachineError: a retriever's package is missing.
    """
    spec.check()
    grader = next((grader for grader in graders if grader.reads == "answers"), None)
    if grader is None:
        raise ConfigError(
            f"prompt: prompts are chosen by what their answers score, and evaluate.graders has only {', '.join(each.called for each in graders)}; add one that judges answers"
        )
    train, test = load_examples(prepared.path, "train"), load_examples(prepared.path, "test")
    places = Finetune(rows=learnt).places(load_split(prepared.path, "train"), seed)
    return grader, divide([train[place] for place in places], test, spec.development, max(spec.shots), seed)


def _tried(spec: Prompt, prompter: Prompter, trying: Trying, seed: int) -> tuple[list[Scored], list[dict[str, Any]]]:
    """Every way on the development rows, the optimised one last."""
    found = [trying.score(way, way.name) for way in ways(spec, len(prompter.pool), prompter.indexes, seed)]
    if NAME not in spec.ways:
        return found, []
    start = max(found, key=lambda each: each.rank)
    common, unit = prompter.common or "", trying.grader.unit
    best, trajectory = optimise(
        spec.optimiser, spec.proposer, start, trying.score, prompter.pool, common=common, unit=unit, seed=seed, folder=trying.out.path
    )  # fmt: skip
    return [*found, best], trajectory


def _tested(
    way: Way, prompter: Prompter, test: list[Example], grader: Grader, out: Output, seed: int
) -> dict[str, Any]:
    """A way's score on the test rows, and what its requests are like there."""
    answers = kept(out, way.name, lambda: prompter.answers(way, test))
    asked = prompter.requests(way, test)
    figure = interval(grader.graded(test, answers)[HEADLINE], seed=seed)
    return {"test": figure.to_json(), "tokens": asked.tokens, "shortened": asked.shortened}


def _told(found: Scored, chosen: bool) -> dict[str, Any]:
    return {
        "way": found.way.name, "about": found.way.about, "chosen": chosen, "development": interval(found.figure).to_json(), "test": None,
        "tokens": found.tokens, "shortened": found.shortened,
    }  # fmt: skip


def _counts(divided: Divided, test: list[Example]) -> dict[str, int]:
    return {"examples": len(divided.pool), "development": len(divided.development), "test": len(test)}


def _made_by(spec: Prompt, prompter: Prompter) -> dict[str, Any]:
    """What found examples and instructions, by name."""
    return {
        "retrievers": {kind: index.about for kind, index in prompter.indexes.items()},
        "proposer": spec.proposer.kind if NAME in spec.ways else None,
    }


def _write(out: Output, spec: Prompt, prompter: Prompter, best: Scored, results: dict[str, Any]) -> None:
    """The best prompt, with the rows that its examples are to be found among, if each request has its own."""
    retriever = next((each for each in spec.retrievers if each.kind == best.way.similar), None)
    about = next(each for each in results["ways"] if each["chosen"])
    scores = {name: about[name] for name in ("development", "test", "tokens", "shortened")}
    measured = {"grader": results["grader"], "unit": results["unit"], "scores": scores}
    write_json(out / "prompt.json", {**written(best.way, prompter, retriever), **measured})
    if retriever is not None:
        lines = [json.dumps({"messages": [*row.prompt, *row.answers[0]]}, ensure_ascii=False) for row in prompter.pool]
        write_atomic(out / "examples.jsonl", "\n".join(lines) + "\n")
    write_json(out / "results.json", results)


def _prove(divided: Divided, test: list[Example], trajectory: list[dict[str, Any]]) -> Proof:
    uses = {"examples": divided.pool, "development": divided.development, "test": test}
    origins = {name: {example.origin for example in rows} for name, rows in uses.items()}
    together = set.union(*origins.values())
    proof, counts = Proof(), {name: len(found) for name, found in origins.items()}
    proof.claim("no row is used twice", len(together) == sum(counts.values()), **counts)
    within = all(each["words_changed"] <= step["limit"] for step in trajectory for each in step["tried"])
    proof.claim("no instruction changed by more words than its step allows", within, steps=len(trajectory))
    return proof


STAGE = Stage("prompt", 5, prompt)
