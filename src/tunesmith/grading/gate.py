"""The gate: whether a tuned model may replace what is there, said in plain sentences with the figures."""

from typing import Any

from pydantic import Field

from tunesmith.base import ConfigError, Spec

from .scoreboard import SUBJECT

PROMPTED = "prompted"
"""The system that answers by the best prompt, where one was looked for."""


class Gate(Spec):
    """Promote only what is shown to be better at the task and shown not to be worse elsewhere."""

    task: str | None = None
    """Grader that decides on the task, by its kind, or its name if it is a function; empty means the scoreboard's headline."""
    beat: tuple[str, ...] = ("base",)
    """Systems it must beat on the task, of those that there are: `base`, `few-shot`, `prompted`, `majority`, `svm`, and for a model that scores answers
    `length`. The 95 % interval of the paired difference must lie on the better side of zero."""
    prompted: bool = True
    """Whether it must beat the best prompt too, where `evaluate.prompted` has one looked for."""
    retrieval: bool = True
    """Whether a drop of accuracy, completeness or grounding that is shown on `evaluate.retrieval` keeps it back: the 95 % interval of a paired difference
    lies below zero, with any retriever. So do fewer than `rows` questions, which could not show it."""
    margin: float | None = Field(default=5.0, gt=0)
    """By how many percent perplexity on the general rows may rise, at the upper end of its 95 % interval; empty turns
    this check off."""
    rows: int = Field(default=30, ge=1)
    """Fewest rows, and questions about documents, that a decision may rest on."""

    def __call__(
        self, task: dict[str, Any], general: dict[str, Any] | None = None, retrieval: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Decide from the scoreboard of the task's held-out rows, that of general rows (grader `perplexity`), and by retriever what `grounded.compared` found.

        Returns:
            `{"promote": bool, "reasons": [sentence, ...]}`; the figure that is missing speaks against promotion.

        Raises:
            ConfigError: the grader named by `task` is not on the scoreboard.
        """
        best = [PROMPTED] if self.prompted and PROMPTED in task["systems"] else []
        checks = [self._beats(task, other) for other in dict.fromkeys([*self.beat, *best])]
        if self.margin is not None:
            checks.append(self._keeps(general, self.margin))
        if self.retrieval and retrieval:
            checks += [self._reads(kind, found, task["subject"]) for kind, found in retrieval.items()]
        return {"promote": all(passed for passed, _ in checks), "reasons": [reason for _, reason in checks]}

    def _beats(self, board: dict[str, Any], other: str) -> tuple[bool, str]:
        kind = self.task or next(name for name, block in board["graders"].items() if block["headline"])
        if kind not in board["graders"]:
            raise ConfigError(f"gate.task: {kind!r} is not on the scoreboard; there are {', '.join(board['graders'])}")
        block, subject = board["graders"][kind], board["subject"]
        digits = block["digits"]
        found = block["differences"].get(f"{subject} - {other}")
        if found is None:
            return (
                False,
                f"{subject} was not compared with {other} by {kind}: the report says why; leave it out of evaluate.gate.beat to decide without.",
            )
        if found["n"] < self.rows:
            return False, f"{kind} rests on {found['n']} rows; a decision needs {self.rows}."
        better = _above(found["low"], 0) if block["better"] == "higher" else _below(found["high"], 0)
        mine, theirs = block["systems"][subject]["value"], block["systems"][other]["value"]
        figures = (
            f"{mine:.{digits}f} against {theirs:.{digits}f} {block['unit']}, difference {found['value']:+.{digits}f}"
        )
        seen = f"{kind} {figures} ({_range(found, digits)})"
        if better:
            return True, f"{subject} beats {other}: {seen}."
        least = found["detectable"]
        power = "" if least is None else f"; a difference of {least:.{digits}f} could have been seen"
        return False, f"{subject} is not shown to beat {other}: {seen}{power}."

    def _keeps(self, board: dict[str, Any] | None, margin: float) -> tuple[bool, str]:
        subject = board["subject"] if board else SUBJECT
        block = board["graders"].get("perplexity", {}) if board else {}
        found = block.get("differences", {}).get(f"{subject} - base")
        if found is None:
            return False, "General ability was not compared with base; give general rows, or set gate.margin to null."
        if found["n"] < self.rows:
            return False, f"General perplexity rests on {found['n']} rows; a decision needs {self.rows}."
        rise = found["relative"]
        seen = f"perplexity on general rows changes by {rise['value']:+.1f} % ({_range(rise)})"
        if _below(rise["high"], margin):
            return True, f"{subject} keeps its general ability: {seen}, within the margin of {margin:g} %."
        return False, f"{subject} is not shown to keep its general ability: {seen}, the margin is {margin:g} %."

    def _reads(self, kind: str, found: dict[str, Any], subject: str) -> tuple[bool, str]:
        """Whether answers from passages are not shown to have got worse, on enough questions to show it."""
        apart = {name: each["difference"] for name, each in found["measures"].items() if each["difference"] is not None}
        told = {name: f"{name} {each['value']:+.1f} points ({_range(each)})" for name, each in apart.items()}
        dropped = [name for name, each in apart.items() if _below(each["high"], 0)]
        recall = f"passages with what is needed were found for {found['recall']['value']:.0f} % of questions"
        where = f"from passages found by {kind}"
        if dropped:
            return False, f"{subject} answers worse {where}: {'; '.join(told[name] for name in dropped)}; {recall}."
        if found["questions"] < self.rows:
            return False, f"Answers {where} rest on {found['questions']} questions; a decision needs {self.rows}."
        return True, f"{subject} is not shown to answer worse {where}: {'; '.join(told.values())}; {recall}."


def _above(end: float | None, limit: float) -> bool:
    """Whether the lower end of an interval is; one that has no end there is not."""
    return end is not None and end > limit


def _below(end: float | None, limit: float) -> bool:
    """Whether the upper end of an interval is; one that has no end there is not."""
    return end is not None and end < limit


def _range(found: dict[str, Any], digits: int = 1) -> str:
    low, high = found["low"], found["high"]
    ends = "unknown" if low is None or high is None else f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"95 % interval {ends}, {found['n']} rows"
