"""Systems: what base, prompts and classical baselines answer to the test rows, for the tuned model to be compared with, and how each was made."""

from typing import TYPE_CHECKING, Any

from tunesmith.base import Artifact, Output
from tunesmith.base.files import read_json
from tunesmith.data.example import Example
from tunesmith.grading.baselines import majority, svm
from tunesmith.grading.gate import PROMPTED
from tunesmith.models.generate import Sampling
from tunesmith.models.load import Loaded

from .judge import asked, requests, worked

if TYPE_CHECKING:
    from .evaluate import Evaluate


def systems(
    spec: "Evaluate", loaded: Loaded, train: list[Example], test: list[Example], prompted: Artifact | None, out: Output
) -> tuple[dict[str, list[str]], dict[str, str], dict[str, int]]:
    """Answers of everything that the tuned model is compared with, how each was made or why it is missing, and how many were cut off."""
    if all(example.text is not None for example in test):
        return {}, dict.fromkeys(("base", "tuned"), "likelihoods of plain text; nothing was asked"), {}
    sampling, answers, cut = Sampling(max_tokens=spec.max_tokens), {}, {}
    prompts, _ = requests(loaded, test, spec.max_tokens)
    answers["base"], cut["base"] = asked(out, "base", loaded, prompts, sampling)
    few = "" if spec.precision == "auto" else f", weights rounded to {spec.precision}"
    notes = {"base": f"zero-shot: the prompt as it is{few}", "tuned": f"the prompt as it is{few}"}
    if spec.shots and any(example.text is None for example in train):
        shots = worked(train, spec.shots)
        prompts, shortened = requests(loaded, test, spec.max_tokens, shots)
        answers["few-shot"], cut["few-shot"] = asked(out, "few-shot", loaded, prompts, sampling)
        left = f"; not all of them fit before {shortened} of {len(test)} requests" if shortened else ""
        notes["few-shot"] = f"base with {len(shots)} training rows as worked examples in the prompt{left}{few}"
    if prompted is not None:
        answers[PROMPTED], notes[PROMPTED] = _best_prompt(prompted)
    if spec.baselines:
        for name, made in (("majority", majority(train, test)), ("svm", svm(train, test))):
            notes[name] = made.reason
            if made.answers is not None:
                answers[name] = made.answers
    return answers, notes, cut


def cut_off(notes: dict[str, str], cut: dict[str, int], max_tokens: int, rows: int) -> dict[str, Any]:
    """The notes, which say it too, and what share of a system's answers was cut off, in percent, if any was."""
    some = {system: count for system, count in cut.items() if count}
    said = {
        name: f"; {count} of {rows} answers were cut off at evaluate.max_tokens={max_tokens}"
        for name, count in some.items()
    }
    return {
        "notes": {name: note + said.get(name, "") for name, note in notes.items()},
        "cut_off": {name: 100 * count / rows for name, count in some.items()},
    }


def _best_prompt(prompted: Artifact) -> tuple[list[str], str]:
    """What the best prompt's requests were answered, and how it was found."""
    best = read_json(prompted / "prompt.json")
    answers: list[str] = read_json(prompted / f"{best['way']}.json")
    many = len(prompted.metrics["ways"])
    chosen = (
        f"chosen from {many} by {prompted.metrics['rows']['development']} training rows" if many > 1 else "not chosen"
    )
    return answers, f"base with the prompt {best['way']} ({best['about']}), {chosen}"
