"""Evaluate: base, prompts, classical baselines and the tuned model on the same held-out rows, and whether to promote."""

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.base import Artifact, DataError, Output, Spec, Stage
from tunesmith.base.files import write_atomic, write_json
from tunesmith.base.proof import Proof
from tunesmith.data.example import Example, Row
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.grading import Grader, Likelihood
from tunesmith.grading.exact import Exact
from tunesmith.grading.gate import PROMPTED, Gate
from tunesmith.grading.perplexity import Perplexity
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.methods.objectives import Objective
from tunesmith.methods.objectives.reward import Reward
from tunesmith.models.generate import Sampling
from tunesmith.models.load import Loaded, Precision, load, served

from .chances import Tell, Told, asking
from .documents import Documents, Retrieval
from .finetune import Finetune
from .general import general_examples, general_files
from .judge import asked, kept, learnt_by, likelihoods, merge, requests
from .remembered import remembered
from .scoring import evaluate_scores
from .systems import cut_off, systems

PROBE = 8
"""Test rows whose likelihood is taken when no grader asks for all."""


class Evaluate(Spec):
    """How the tuned model is measured, and what it takes to be promoted."""

    graders: tuple[Grader, ...] = Field((Exact(), Perplexity()), min_length=1)
    """How answers are judged; the first is the headline."""
    rows: int | None = Field(None, ge=1)
    """Most test rows; null takes all."""
    max_tokens: int = Field(128, ge=1)
    """Length of an answer."""
    shots: int = Field(4, ge=0)
    """Worked examples in the few-shot prompt, training rows drawn by chance, always the same; 0 leaves it out."""
    prompted: bool = False
    """Whether the best prompt that is found before training (see `prompt`) is measured too; that takes as long as some hundred answers more."""
    baselines: bool = True
    """Whether majority class and TF-IDF with a linear SVM are trained on the same rows, where the task is one of classes."""
    slices: tuple[str, ...] = ()
    """What results are split by, named as in `prepare.classes`."""
    general: str | None = "bundled"
    """Rows of other tasks, on which perplexity must not rise: the bundled set, or a messages .jsonl file; null skips it."""
    retrieval: Retrieval | None = None
    """Documents and questions on which answers from retrieved passages must not get worse; null skips it."""
    gate: Gate = Gate()
    """What it takes to be promoted."""
    precision: Literal["auto", "int8", "nf4"] = "auto"
    """What base and tuned model answer in, here and when they are served; auto is the training's where that is not in few bits. int8 and nf4 round the
    merged weights, so that the figures are those of the rounded model: int8 reads half of the bytes for a further token, nf4 a quarter of them, which it
    has to make numbers of first."""

    @model_validator(mode="after")
    def _graders_differ(self) -> Self:
        names = [grader.called for grader in self.graders]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"graders: {twice} is named twice, and results go by it; name it once")
        return self

    @model_validator(mode="after")
    def _the_gate_asks_one_of_them(self) -> Self:
        names = [grader.called for grader in self.graders]
        if self.gate.task is not None and self.gate.task not in names:
            raise ValueError(f"gate.task: {self.gate.task!r} is none of the graders; there are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _prompts_are_judged(self) -> Self:
        deciding = self.judges[:1]
        if self.prompted and self.gate.prompted and any(grader.reads != "answers" for grader in deciding):
            raise ValueError(
                f"the best prompt is worth what its answers are, and the gate decides by {deciding[0].called}; set gate.task to a grader of answers, or gate.prompted to false"
            )
        return self

    @property
    def judges(self) -> tuple[Grader, ...]:
        """The graders, that which the gate decides by before the others."""
        return tuple(sorted(self.graders, key=lambda grader: grader.called != self.gate.task))

    def rivals(self, objective: Objective) -> tuple[str, ...]:
        """What a model that learnt by an objective is compared with by the grader that the gate decides by."""
        if isinstance(objective, Reward):
            return ("base",) if objective.loss == "regression" else ("base", "length")
        if any(grader.reads != "answers" for grader in self.judges[:1]):
            return ("base",)
        made = {"few-shot": self.shots > 0, PROMPTED: self.prompted, "majority": self.baselines, "svm": self.baselines}
        return "base", *(name for name, wanted in made.items() if wanted)

    def settled(self) -> Self:
        """With what depends on this installation decided."""
        return self if self.retrieval is None else self.model_copy(update={"retrieval": self.retrieval.settled()})


def input_files(spec: Evaluate) -> tuple[Path, ...]:
    """Files that are read beside the rows.

    Raises:
        DataError: one is missing.
    """
    return (*general_files(spec.general), *(spec.retrieval.files() if spec.retrieval is not None else ()))


def evaluate(
    spec: Evaluate, prepared: Artifact, initialised: Artifact, finetuned: Artifact, *further: Artifact, out: Output, model: str,
    precision: Precision, adapter: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    """Write every system's answers, `results.json` with the scoreboards and the gate's decision, and the proof.

    The tuned model is the pruned one where there is one among `further`; the best prompt's answers are there too if it was looked for.

    Raises:
        DataError: there are no test rows.
    """
    test = load_examples(prepared.path, "test", spec.rows)
    if not test:
        raise DataError("evaluate: there are no test rows; set prepare.test or prepare.test_fraction")
    objective = learnt_by(finetuned)
    about: dict[str, Any] = {"model": model, "precision": precision, "adapter": adapter, "seed": seed}
    if isinstance(objective, Reward):
        results = evaluate_scores(spec, objective, prepared, finetuned, out=out, **about)
    else:
        results = _evaluate_answers(spec, test, prepared, finetuned, further, out=out, **about)
    out.metrics.update(headline(results))


def _evaluate_answers(
    spec: Evaluate, test: list[Example], prepared: Artifact, finetuned: Artifact, further: tuple[Artifact, ...], *, out: Output,
    model: str, precision: Precision, adapter: dict[str, Any], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """As `evaluate`, of a model that answers; the results."""
    train, rows = learnt_from(prepared, finetuned), load_split(prepared.path, "test", spec.rows)
    pruned, prompted = (_of(stage, further) for stage in ("prune", "prompt"))
    loaded = load(model, served(precision, spec.precision), today=rendered_on(prepared.path))
    general = _general(spec, loaded)
    answers, notes, cut = systems(spec, loaded, train, test, prompted, out)
    documents = Documents(spec.retrieval, loaded, spec.max_tokens, out)
    documents.ask("base", loaded)
    reads = any(grader.reads == "likelihoods" for grader in spec.graders)
    read = rows if reads else rows[:PROBE]  # without such a grader a few serve the proof
    base, base_general = likelihoods(loaded, read), likelihoods(loaded, general)
    tell = asking(spec.graders, test)
    told = _told(out, "base", tell, loaded)
    merge(loaded, adapter, finetuned, precision, pruned)
    told |= _told(out, "tuned", tell, loaded)
    tuned, tuned_general = likelihoods(loaded, read), likelihoods(loaded, general)
    if answers:
        prompts, _ = requests(loaded, test, spec.max_tokens)
        answers["tuned"], cut["tuned"] = asked(out, "tuned", loaded, prompts, Sampling(max_tokens=spec.max_tokens))
    documents.ask("tuned", loaded)
    found = {"base": base, "tuned": tuned} if reads else {}
    board = scoreboard(test, answers, spec.graders, likelihoods=found, chances=told, slices=spec.slices, seed=seed)
    results = {"task": board, **cut_off(notes, cut, spec.max_tokens, len(test))}
    results |= _generally(spec, loaded, base_general, tuned_general)
    results |= {"prompting": prompted.metrics if prompted is not None else None, "retrieval": documents.results(seed)}
    results["canaries"] = remembered(prepared, loaded, seed)
    results["gate"] = spec.gate(board, results["general"], results["retrieval"])
    write_json(out / "results.json", results)
    _write_answers(out, test, answers)
    _prove(base, tuned, len(test), answers).write(out / "proof.json")
    return results


def _of(stage: str, further: tuple[Artifact, ...]) -> Artifact | None:
    """What a stage made that not every run has."""
    return next((one for one in further if one.manifest["stage"] == stage), None)


def learnt_from(prepared: Artifact, finetuned: Artifact) -> list[Example]:
    """The examples that a training had."""
    train, spec = load_examples(prepared.path, "train"), Finetune.model_validate(finetuned.manifest["spec"])
    if spec.rows is None:
        return train
    places = spec.places(load_split(prepared.path, "train"), finetuned.manifest["context"]["seed"])
    return [train[place] for place in places]


def _told(out: Output, system: str, tell: Tell | None, loaded: Loaded) -> dict[str, list[Told]]:
    """How probable a system finds each class, if a grader wants to know."""
    return {} if tell is None else {system: kept(out, f"{system}-chances", lambda: tell(loaded))}


def _general(spec: Evaluate, loaded: Loaded) -> list[Row]:
    """Rows of the general set as tokens."""
    if spec.general is None:
        return []
    return [loaded.renderer().row(example) for example in general_examples(spec.general)]


def _generally(spec: Evaluate, loaded: Loaded, base: list[Likelihood], tuned: list[Likelihood]) -> dict[str, Any]:
    """The scoreboard of the general rows."""
    if spec.general is None:
        return {"general": None}
    examples = general_examples(spec.general)
    return {"general": scoreboard(examples, {}, (Perplexity(),), likelihoods={"base": base, "tuned": tuned})}


def _write_answers(out: Output, test: list[Example], answers: dict[str, list[str]]) -> None:
    """One line per row with every system's answer, for people and for the report."""
    lines = []
    for number, example in enumerate(test):
        prompt = str(example.asked[-1].get("content") or "") if example.asked else ""
        given = {system: answered[number] for system, answered in answers.items()}
        gold = example.gold or ", ".join(
            f"{name}({json.dumps(with_, ensure_ascii=False)})" for name, with_ in example.calls
        )
        line = {"origin": example.origin, "prompt": prompt, "gold": gold, "answers": given}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_atomic(out / "answers.jsonl", "\n".join(lines) + "\n")


def _prove(base: list[Likelihood], tuned: list[Likelihood], rows: int, answers: dict[str, list[str]]) -> Proof:
    proof = Proof()
    changed = sum(one.loss != other.loss for one, other in zip(base, tuned, strict=True))
    proof.claim("the adapter changes the logits", changed > 0, rows=rows, rows_changed=changed)
    finite = all(math.isfinite(one.loss) for one in tuned)
    proof.claim("every likelihood is finite", finite, rows=rows)
    proof.claim(
        "every system answered every row",
        all(len(given) == rows for given in answers.values()),
        systems=sorted(answers),
    )
    return proof


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that the run's summary shows."""
    board = results["task"]
    kind, block = next((kind, block) for kind, block in board["graders"].items() if block["headline"])
    return {
        "grader": kind,
        "unit": block["unit"],
        "better": block["better"],
        "digits": block["digits"],
        "systems": block["systems"],
        "differences": block["differences"],
        "promote": results["gate"]["promote"],
        "reasons": results["gate"]["reasons"],
        **{name: results[name] for name in ("canaries", "cut_off") if results.get(name)},
    }


STAGE = Stage("evaluate", 7, evaluate)
