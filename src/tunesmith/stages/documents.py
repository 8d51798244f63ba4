"""Answers from retrieved passages, before and after tuning: what a model forgets of reading is seen here (Fine-Tuning or Fine-Failing, arXiv:2406.11201)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tunesmith.base import DataError, Output, Spec
from tunesmith.base.files import write_atomic
from tunesmith.data.documents import Passage, Question, about_missing, document_files, read_passages, read_questions
from tunesmith.data.retrieval import Retriever, nearest
from tunesmith.data.retrieval.bm25 import BM25
from tunesmith.data.retrieval.embedding import Embedding
from tunesmith.data.sources import find_files
from tunesmith.grading.grounded import Asked, Match, compared, contains
from tunesmith.models.generate import Sampling
from tunesmith.models.load import Loaded

from .judge import kept, room, said


class Retrieval(Spec):
    """Questions that are answered from passages of documents, by the base and by the tuned model alike."""

    documents: str
    """A folder of .md and .txt files, or a file of rows with `text`, and perhaps `id`."""
    questions: str
    """A file of rows with `question`, `answer` (or a list of right ones), and perhaps `facts` (what a complete answer says) and `document` (where it
    stands: a file's name in the folder, or a row's id)."""
    retrievers: tuple[Retriever, ...] = Field((BM25(), Embedding()), min_length=1)
    """How passages are found; answers are compared for each."""
    passages: int = Field(3, ge=1)
    """Passages that stand before a question, the best first."""
    words: int = Field(100, ge=10)
    """Length of a passage."""
    instruction: str = "Answer the question from the passages."
    """What a request begins with."""
    accuracy: Match = "contained"
    """When an answer is right: if a right answer stands in it (contained), if it is one (exact), or by words in common (f1)."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        kinds = [each.kind for each in self.retrievers]
        if len(set(kinds)) < len(kinds):
            raise ValueError("retrievers: name each kind once")
        return self

    def settled(self) -> Self:
        """With what depends on this installation decided."""
        return self.model_copy(update={"retrievers": tuple(each.settled() for each in self.retrievers)})

    def check(self) -> None:
        """Read everything once, before anything is trained.

        Raises:
            DataError: documents or questions are not what they should be.
            MachineError: a retriever's package is missing.
        """
        self.read()
        for retriever in self.retrievers:
            retriever.index(["one text"])

    def read(self) -> tuple[list[Passage], list[Question]]:
        """Passages and questions.

        Raises:
            DataError: they are not what they should be.
        """
        passages, questions = read_passages(self.documents, self.words), read_questions(self.questions)
        if wrong := about_missing(questions, passages):
            raise DataError(wrong)
        return passages, questions

    def files(self) -> tuple[Path, ...]:
        """What is read.

        Raises:
            DataError: a file is missing.
        """
        return (*document_files(self.documents), *find_files(self.questions, "questions"))


@dataclass(frozen=True)
class Reading:
    """All questions with the passages of one retriever, ready to be put to a model."""

    about: str
    """How passages were found, in words."""
    rows: list[Asked]
    prompts: list[list[int]]
    """Token ids of each question's request."""
    shortened: int
    """Questions with fewer passages, since all would not have fitted into the model's context."""


def readings(spec: Retrieval, loaded: Loaded, max_tokens: int) -> dict[str, Reading]:
    """What each retriever finds for every question.

    Raises:
        DataError: documents or questions are not what they should be.
        MachineError: a retriever's package is missing.
    """
    passages, questions = spec.read()
    found = {}
    for retriever in spec.retrievers:
        index = retriever.index([passage.text for passage in passages])
        places = nearest(index.scores([question.text for question in questions]), spec.passages).tolist()
        chosen = [[passages[place] for place in each] for each in places]
        found[retriever.kind] = _reading(spec, index.about, questions, chosen, loaded, max_tokens)
    return found


def _reading(
    spec: Retrieval, about: str, questions: Sequence[Question], chosen: Sequence[Sequence[Passage]], loaded: Loaded, max_tokens: int
) -> Reading:  # fmt: skip
    renderer, longest = loaded.renderer(), room(loaded, max_tokens)
    rows, prompts, shortened = [], [], 0
    for question, passages in zip(questions, chosen, strict=True):
        kept = list(passages)
        prompt = renderer.prompt(request(spec.instruction, kept, question))
        while kept and len(prompt) > longest:
            kept = kept[:-1]
            prompt = renderer.prompt(request(spec.instruction, kept, question))
        shortened += len(kept) < len(passages)
        rows.append(Asked(question, tuple(passage.text for passage in kept), holds(kept, question)))
        prompts.append(prompt)
    return Reading(about, rows, prompts, shortened)


def request(instruction: str, passages: Sequence[Passage], question: Question) -> list[dict[str, Any]]:
    """The conversation in which a question is put."""
    shown = [f"Passage {number}: {passage.text}" for number, passage in enumerate(passages, start=1)]
    return [{"role": "user", "content": "\n\n".join([instruction, *shown, f"Question: {question.text}"])}]


def holds(passages: Sequence[Passage], question: Question) -> bool:
    """Whether passages hold what is needed: one of them is from the question's document (if it names one) and contains a right answer, or a fact where it has facts."""
    wanted = question.facts or question.answers
    return any(
        question.document in (None, passage.document) and any(contains(passage.text, each) for each in wanted)
        for passage in passages
    )


class Documents:
    """What models answer to questions about documents; nothing, where there are none."""

    def __init__(self, spec: Retrieval | None, loaded: Loaded, max_tokens: int, out: Output) -> None:
        """Find passages; requests are as the model `loaded` reads them, and its tuned form reads the same."""
        self.spec, self.sampling, self.out = spec, Sampling(max_tokens=max_tokens), out
        self.found = readings(spec, loaded, max_tokens) if spec is not None else {}
        self.answers: dict[str, dict[str, list[str]]] = {kind: {} for kind in self.found}

    def ask(self, system: str, loaded: Loaded) -> None:
        """Let a model answer every question, once for each retriever."""
        for kind, reading in self.found.items():
            self.answers[kind][system] = kept(self.out, system, partial(said, loaded, reading.prompts, self.sampling), kind)  # fmt: skip

    def results(self, seed: int) -> dict[str, Any] | None:
        """By retriever, what tuning did; all answers are written to `documents.jsonl`, for people."""
        if self.spec is None:
            return None
        lines = [json.dumps(line, ensure_ascii=False) for line in self._lines()]
        write_atomic(self.out / "documents.jsonl", "\n".join(lines) + "\n")
        match = self.spec.accuracy
        return {
            kind: {
                "about": reading.about,
                "shortened": reading.shortened,
                **compared(reading.rows, self.answers[kind]["base"], self.answers[kind]["tuned"], match, seed),
            }
            for kind, reading in self.found.items()
        }

    def _lines(self) -> Iterator[dict[str, Any]]:
        """One for each retriever and question, with its passages and every system's answer."""
        for kind, reading in self.found.items():
            for number, row in enumerate(reading.rows):
                yield {
                    "retriever": kind, "question": row.question.text, "right": row.question.answers, "found": row.found, "passages": row.passages,
                    "answers": {system: given[number] for system, given in self.answers[kind].items()},
                }  # fmt: skip
