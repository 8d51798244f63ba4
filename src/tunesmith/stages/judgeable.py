"""What of an evaluation can be refused before anything is trained: graders that cannot read the test rows, files and fields that are not there."""

import torch

from tunesmith.base import Artifact, ConfigError, DataError
from tunesmith.base.files import read_json
from tunesmith.data.classes import ANSWER
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_examples
from tunesmith.grading import Grader
from tunesmith.grading.reading import read_object
from tunesmith.grading.scoreboard import held

from .chances import asking
from .evaluate import Evaluate, input_files
from .general import general_examples
from .prepare import Prepare


def check(spec: Evaluate, prepared: Artifact) -> None:
    """Refuse what cannot be evaluated before anything is trained: graders of answers where all rows are plain text, rows that a grader cannot read, documents that
    cannot be asked about, slices by what no row has, general rows that are not there, a precision that this machine does not have.

    Raises:
        ConfigError: naming the graders, or the slices.
        DataError: test rows, general rows, documents or questions are not what they should be.
        MachineError: a retriever's package is missing.
    """
    if spec.precision == "int8" and torch.cuda.is_available():
        raise ConfigError("evaluate.precision: int8 is for CPUs; set it to auto or nf4")
    formats = {source["format"] for source in read_json(prepared / "summary.json")["sources"]}
    reading = [grader for grader in spec.graders if grader.reads in ("answers", "chances")]
    if formats == {"text"} and reading:
        raise ConfigError(
            f"evaluate.graders: {', '.join(grader.called for grader in reading)} judges answers, and plain text asks for none; set evaluate.graders=[{{kind: perplexity}}]"
        )
    if test := load_examples(prepared.path, "test", spec.rows):
        if reading:
            _readable(test, reading)
            for grader in reading:
                grader.check(test)
        asking(spec.graders, test)
        _sliced(test, spec.slices)
    input_files(spec)
    if spec.general is not None:
        general_examples(spec.general)
    if spec.retrieval is not None:
        spec.retrieval.check()


def check_held_out(spec: Prepare) -> None:
    """Refuse to measure by rows that are not held out.

    Raises:
        ConfigError: saying so.
    """
    if spec.test is None and not spec.test_fraction:
        raise ConfigError(
            "prepare: test_fraction is 0 and there is no prepare.test, so nothing could be measured; set one of them, or end with `tunesmith finetune`"
        )


def _readable(test: list[Example], graders: list[Grader]) -> None:
    """Refuse test rows whose own answer is no right answer in words.

    Raises:
        DataError: naming the first.
    """
    blind = [grader for grader in graders if not grader.judges_calls]
    for example in test:
        unable = graders
        if not example.wanted:
            wrong = "its answer is an unwanted one, which graders would take for right; hold out wanted answers (prepare.test)"
        elif example.calls and blind:
            unable = blind
            wrong = "its last turn calls a tool, which is no text to compare an answer with; set evaluate.graders=[{kind: tool_calls}], or hold out rows that end with text"
        else:
            continue
        raise DataError(
            f"{example.origin}: {', '.join(grader.called for grader in unable)} cannot judge by it: {wrong}"
        )


def _sliced(test: list[Example], slices: tuple[str, ...]) -> None:
    """Refuse to split results by what no test row has.

    Raises:
        ConfigError: naming the fields that there are.
    """
    for path in slices:
        if not any(held(example, path) for example in test):
            fields = dict.fromkeys(name for example in test for name in (*example.meta, ANSWER, *_within(example)))
            raise ConfigError(f"evaluate.slices: no test row has {path!r}; there are {', '.join(fields)}")


def _within(example: Example) -> list[str]:
    """Paths of the fields of a JSON answer."""
    return [f"{ANSWER}.{name}" for name in read_object(example.gold, "strict") or ()]
