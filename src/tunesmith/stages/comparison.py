"""Evaluates a merged model on the task of every run it is made of: base, the run's own model and the merged one, on the same held-out rows."""

import json
import math
from collections.abc import Sequence
from typing import Any

from tunesmith.base import Artifact, Output, Spec, Stage
from tunesmith.base.files import write_atomic, write_json
from tunesmith.base.proof import Proof
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.grading import Likelihood
from tunesmith.grading.gate import PROMPTED
from tunesmith.grading.perplexity import Perplexity
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.models.generate import Sampling
from tunesmith.models.load import Loaded, Precision, load, served

from .chances import Told, asking
from .evaluate import PROBE, headline
from .general import general_examples
from .headline import cells
from .judge import answer, kept, likelihoods, merge
from .sources import Source

SUBJECT = "merged"
SYSTEMS = {"base": "base", "tuned": "own"}
"""Systems whose answers a run's evaluation holds, and what they are called here."""


class Compare(Spec):
    """How a merged model is measured: as each of its runs was."""


class Task:
    """A run's test rows with what every system made of them."""

    def __init__(self, number: int, source: Source, loaded: Loaded) -> None:
        self.number, self.source, self.name, self.spec = number, source, source.name, source.evaluation
        self.examples = load_examples(source.prepared.path, "test", self.spec.rows)
        self.reads = any(grader.reads == "likelihoods" for grader in self.spec.graders)
        rows = load_split(source.prepared.path, "test", self.spec.rows)
        self.rows = rows if self.reads else rows[:PROBE]  # without such a grader a few serve the proof
        self.general = [] if self.spec.general is None else general_examples(self.spec.general)
        self.today = loaded.today = rendered_on(source.prepared.path)
        self.general_rows = [loaded.renderer().row(example) for example in self.general]
        self.answers = _answers(source.evaluated, (*self.spec.gate.beat, PROMPTED))
        self.likelihoods: dict[str, list[Likelihood]] = {}
        self.tell = asking(self.spec.graders, self.examples)
        self.chances: dict[str, list[Told]] = {}
        self.generally: dict[str, list[Likelihood]] = {}

    def read(self, loaded: Loaded, system: str, known: dict[str | None, list[Likelihood]]) -> None:
        """Take a system's likelihoods of the task's rows and of the general ones, which other tasks may have in common."""
        loaded.today = self.today
        self.likelihoods[system] = likelihoods(loaded, self.rows)
        if self.tell:
            self.chances[system] = self.tell(loaded)
        if self.spec.general not in known:
            known[self.spec.general] = likelihoods(loaded, self.general_rows)
        self.generally[system] = known[self.spec.general]

    def answer(self, loaded: Loaded, out: Output) -> None:
        """Let the merged model answer."""
        loaded.today = self.today
        sampling = Sampling(max_tokens=self.spec.max_tokens)
        self.answers[SUBJECT] = kept(out, f"{SUBJECT}-{self.number}", lambda: answer(loaded, self.examples, sampling))

    def results(self) -> dict[str, Any]:
        """The scoreboards and what the run's own gate says of the merged model."""
        seed = self.source.evaluated.manifest["context"]["seed"]
        board = scoreboard(
            self.examples, self.answers, self.spec.graders, likelihoods=self.likelihoods if self.reads else {},
            chances=self.chances, slices=self.spec.slices, seed=seed, subject=SUBJECT,
        )  # fmt: skip
        general = None
        if self.general:
            general = scoreboard(self.general, {}, (Perplexity(),), likelihoods=self.generally, subject=SUBJECT)
        return {"task": board, "general": general, "gate": self._decided(board, general)}

    def _decided(self, board: dict[str, Any], general: dict[str, Any] | None) -> dict[str, Any]:
        """What the run's gate says; of answers from documents, which it may ask for too, nothing is known."""
        said = self.spec.gate(board, general)
        if self.spec.retrieval is None or not self.spec.gate.retrieval:
            return said
        missing = f"{SUBJECT} was not asked about documents; set evaluate.gate.retrieval to false in {self.name}, evaluate it and merge again to do without."
        return {"promote": False, "reasons": [*said["reasons"], missing]}

    def prove(self, proof: Proof) -> None:
        """Claims about what was measured."""
        base, merged = self.likelihoods["base"], self.likelihoods[SUBJECT]
        changed = sum(one.loss != other.loss for one, other in zip(base, merged, strict=True))
        proof.claim(f"{self.name}: merging changed the logits", changed > 0, rows=len(base), rows_changed=changed)
        finite = all(math.isfinite(one.loss) for one in merged)
        proof.claim(f"{self.name}: every likelihood is finite", finite, rows=len(merged))
        answered = all(len(given) == len(self.examples) for given in self.answers.values())
        proof.claim(f"{self.name}: every system answered every row", answered, systems=sorted(self.answers))


def compare(
    spec: Compare, merged: Artifact, *parents: Artifact, out: Output, model: str, precision: Precision, names: list[str]
) -> None:  # fmt: skip
    """Write `results.json` (for each run its scoreboards and its gate's decision), `comparison.md`, and the proof.

    What base, a run's own model and the rivals that its gate names answered is read from the run's evaluation; likelihoods are computed anew.
    """
    sources = [Source(name, *parents[4 * place : 4 * place + 4]) for place, name in enumerate(names)]
    loaded = load(model, served(precision))
    tasks = [Task(number, source, loaded) for number, source in enumerate(sources, start=1)]
    known: dict[str | None, list[Likelihood]] = {}
    for task in tasks:
        task.read(loaded, "base", known)
    for task in tasks:
        merge(loaded, task.source.context["adapter"], task.source.finetuned, precision)
        task.read(loaded, "own", {})
    merge(loaded, merged.metrics["adapter"], merged, precision)
    known = {}
    for task in tasks:
        task.read(loaded, SUBJECT, known)
        task.answer(loaded, out)
    results = {task.name: task.results() for task in tasks}
    write_json(out / "results.json", results)
    out.metrics.update({**_figures(results), "max_tokens": max(task.spec.max_tokens for task in tasks)})
    write_atomic(out / "comparison.md", table(out.metrics))
    proof = Proof()
    for task in tasks:
        task.prove(proof)
    proof.write(out / "proof.json")


def _answers(evaluated: Artifact, rivals: Sequence[str]) -> dict[str, list[str]]:
    """What base and the run's own model answered, and those of its rivals that it was compared with."""
    with (evaluated / "answers.jsonl").open(encoding="utf-8") as file:  # `splitlines` would end a line at U+2028 too
        given = [json.loads(line)["answers"] for line in file]
    names = {**SYSTEMS, **{rival: rival for rival in rivals if rival in given[0] and rival not in SYSTEMS}}
    return {name: [one[system] for one in given] for system, name in names.items()}


def _figures(results: dict[str, Any]) -> dict[str, Any]:
    """What the run's summary shows: the headline of each task, and whether every gate promotes."""
    tasks = {name: headline(found) for name, found in results.items()}
    reasons = [f"{name}: {reason}" for name, found in tasks.items() for reason in found["reasons"]]
    return {"tasks": tasks, "promote": all(found["promote"] for found in tasks.values()), "reasons": reasons}


HEADINGS: Sequence[str] = ("system", "score", "interval", "merged is better by", "interval")


def table(metrics: dict[str, Any]) -> str:
    """Every task's systems in one table of Markdown."""
    lines = [f"| run | {' | '.join(HEADINGS)} |", "|---|---|" + "---:|" * (len(HEADINGS) - 1)]
    for name, found in metrics["tasks"].items():
        lines += [f"| {name} | {' | '.join(row)} |" for row in cells(found, SUBJECT)]
    kinds = ", ".join(f"{found['grader']} in {found['unit']} ({name})" for name, found in metrics["tasks"].items())
    reasons = "\n".join(f"* {reason}" for reason in metrics["reasons"])
    return "\n".join(lines) + f"\n\n{kinds}; 95 % intervals over rows, differences paired.\n\n{reasons}\n"


STAGE = Stage("evaluate", 6, compare)
