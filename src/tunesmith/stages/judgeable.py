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
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.models.find import locate
from tunesmith.models.load import load_config, longest

from .chances import asking
from .evaluate import Evaluate, input_files
from .general import general_examples
from .prepare import Prepare
from .reach import sizes

NAMED = 3
"""Rows that are named where many are wrong."""


def check(spec: Evaluate, prepared: Artifact, model: str, adapter: Adapter) -> None:
    """Refuse what cannot be evaluated before anything is trained: graders of answers where all rows are plain text, rows that a grader cannot read or that leave no
    room for an answer, answers cut off before most right ones end, documents that cannot be asked about, slices by what no row has, general rows that are not
    there, a precision that this machine does not have.

    Raises:
        ConfigError: naming the graders, the slices, or the length of answers.
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
        if writing := [grader for grader in spec.graders if grader.reads != "scores"]:
            _readable(test, writing)
            for grader in reading:
                grader.check(test)
            _fitting(spec, prepared, test, model, adapter.tokens if isinstance(adapter, Prompt) else 0)
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
    """Refuse test rows whose own answer is no right answer, or for graders of answers none in words.

    Raises:
        DataError: naming the first.
    """
    blind = [grader for grader in graders if grader.reads != "likelihoods" and not grader.judges_calls]
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


def _fitting(spec: Evaluate, prepared: Artifact, test: list[Example], model: str, before: int) -> None:
    """Refuse test rows whose prompt leaves no room for an answer in the model's context, and answers shorter than most right ones.

    Raises:
        ConfigError: saying how long answers have to be.
        DataError: naming the first rows.
    """
    counted = sizes(prepared, "test", test, spec.rows, model)
    found = [(one, *size) for one, size in zip(test, counted, strict=True) if size]
    if not found:
        return
    context = longest(load_config(locate(model)))
    wide = [(one, size) for one, size, _ in found if context is not None and before + size + spec.max_tokens > context]
    if wide:
        named = ", ".join(f"{one.origin} ({size:,} tokens)" for one, size in wide[:NAMED])
        raise DataError(
            f"{len(wide)} of {len(test)} test rows leave no room for an answer of evaluate.max_tokens={spec.max_tokens} in the model's context of {context:,} tokens: "
            f"{named}{', ...' if len(wide) > NAMED else ''}; hold out shorter rows (prepare.test), lower evaluate.max_tokens, or take a model with a longer context"
        )
    reading = [grader.called for grader in spec.graders if grader.reads == "answers"]
    lengths = sorted(answer for _, _, answer in found)
    cut = sum(length > spec.max_tokens for length in lengths)
    if reading and 2 * cut > len(lengths):
        raise ConfigError(
            f"evaluate.max_tokens: {spec.max_tokens} tokens cut off {cut} of {len(lengths)} right answers to the test rows, by which {', '.join(reading)} would judge; "
            f"half of them have up to {lengths[(len(lengths) - 1) // 2]:,}; for all, set evaluate.max_tokens={lengths[-1]}"
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
