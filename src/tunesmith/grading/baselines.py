"""What the task is worth without a language model: the majority class, and TF-IDF with a linear support vector machine.

Text classification by TF-IDF and a linear SVM: Joachims 1998. Its features and strength are chosen by cross-validation
within the training rows, so that the figure a tuned model must beat is the best this family has to offer.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.example import Example

from .extras import extra
from .reading import canonical, read_object
from .statistics import SEED

WHOLE = "\0answer"
"""Name of the only field where the whole answer is one label; no JSON object has it."""
MAX_LABELS = 50
MAX_CLASSES = 300
FOLDS = 3
SELECTION_ROWS = 1000
"""Features are chosen on at most so many training rows; all of them are learnt from."""

Labels = list[dict[str, Any]]


@dataclass(frozen=True)
class Baseline:
    """One answer per test row, or None where the baseline does not apply; `reason` says how it was made or why not."""

    answers: list[str] | None
    reason: str


_WORDS = {"sublinear_tf": True}
_PAIRS = {"sublinear_tf": True, "ngram_range": (1, 2)}
_TOKENS = {"sublinear_tf": True, "token_pattern": r"[^\s,;:()]+"}  # keeps names such as libgtk-3-0 in one piece
_CHARACTERS = {"sublinear_tf": True, "analyzer": "char_wb", "ngram_range": (3, 5)}
FEATURES: dict[str, tuple[dict[str, Any], ...]] = {
    "words": (_WORDS,),
    "words and tokens": (_WORDS, _TOKENS),
    "words and word pairs": (_PAIRS,),
    "words, tokens and characters": (_WORDS, _TOKENS, _CHARACTERS),
}
STRENGTHS = (0.5, 2.0, 8.0)
"""Values of C, the SVM's weight of training errors against the margin."""


def majority(train: Sequence[Example], test: Sequence[Example]) -> Baseline:
    """Answer every test row with the most frequent training value of each field that its gold answer has."""
    train = [example for example in train if example.wanted]
    labels, reason = _labels(train, test)
    if labels is None:
        return Baseline(None, reason)
    learnt = {name: _most_frequent(values) for name, (_, values) in _columns(labels).items()}
    return Baseline(
        _write(test, lambda name, _: learnt.get(name)), f"most frequent of {len(train)} training rows, per {reason}"
    )


def svm(train: Sequence[Example], test: Sequence[Example], *, seed: int = SEED) -> Baseline:
    """Answer every test row by one linear SVM per field, trained on the prompts of the training rows that have it.

    Raises:
        MachineError: scikit-learn is not installed.
    """
    train = [example for example in train if example.wanted]
    labels, reason = _labels(train, test)
    if labels is None:
        return Baseline(None, reason)
    texts = [_text(example) for example in train]
    features, strength, note = _choose(texts, labels, seed)
    known, asked = _vectors(features, texts, [_text(example) for example in test])
    predicted = _predict(known, asked, labels, strength)
    answers = _write(test, lambda name, row: predicted[name][row] if name in predicted else None)
    return Baseline(answers, f"TF-IDF of {features}, linear SVM with C={strength:g}, one per {reason}; {note}")


def _labels(train: Sequence[Example], test: Sequence[Example]) -> tuple[Labels | None, str]:
    """Per training row its fields and values, and what a field is; or None and why not."""
    if not train:
        return None, "there are no training rows to learn from"
    if any(example.calls for example in (*train, *test)):
        return None, "no classifier applies: answers are calls of tools"
    golds = [_flat(example.gold) for example in train]
    if all(gold is not None for gold in golds) and all(_flat(example.gold) is not None for example in test):
        return [gold for gold in golds if gold is not None], "field of the JSON answer"
    texts = [example.gold.strip() for example in train]
    distinct = len(set(texts))
    if distinct <= MAX_LABELS and 2 * distinct <= len(texts):
        return [{WHOLE: text} for text in texts], "answer, taken as one class"
    found = f"{distinct} distinct in {len(texts)} rows"
    return None, f"no classifier applies: answers are neither flat JSON objects nor few labels ({found})"


def _flat(text: str) -> dict[str, Any] | None:
    found = read_object(text, "strict")
    return found if found is not None and not any(isinstance(value, dict | list) for value in found.values()) else None


def _text(example: Example) -> str:
    """What is asked as it is, after one word that all texts share, so that no vocabulary is ever empty."""
    return "\n".join(["prompt", *(str(message.get("content") or "") for message in example.asked)])


def _columns(labels: Labels) -> dict[str, tuple[list[int], list[Any]]]:
    """Per field the training rows that have it, and their values."""
    names = dict.fromkeys(name for label in labels for name in label)
    rows = {name: [row for row, label in enumerate(labels) if name in label] for name in names}
    return {name: (found, [labels[row][name] for row in found]) for name, found in rows.items()}


def _most_frequent(values: Sequence[Any]) -> Any:
    counts = Counter(canonical(value, ignore_case=False) for value in values)
    return json.loads(counts.most_common(1)[0][0])


def _write(test: Sequence[Example], value: Callable[[str, int], Any]) -> list[str]:
    """One answer per test row with exactly its gold answer's fields; null where no training row had one."""
    answers = []
    for row, example in enumerate(test):
        whole = value(WHOLE, row)
        fields = {} if whole is not None else {name: value(name, row) for name in _flat(example.gold) or {}}
        answers.append(json.dumps(fields, ensure_ascii=False) if whole is None else str(whole))
    return answers


def _choose(texts: Sequence[str], labels: Labels, seed: int) -> tuple[str, float, str]:
    """The features and strength most right in cross-validation within training rows, and how they were found."""
    order = [int(row) for row in np.random.default_rng(seed).permutation(len(texts))[:SELECTION_ROWS]]
    right = {(features, strength): 0 for features in FEATURES for strength in STRENGTHS}
    if len(order) < 2 * FOLDS:
        return *next(iter(right)), "too few rows to choose by cross-validation"
    for fold in range(FOLDS):
        kept, held = [row for place, row in enumerate(order) if place % FOLDS != fold], order[fold::FOLDS]
        learnt = [labels[row] for row in kept]
        for features in FEATURES:
            known, asked = _vectors(features, [texts[row] for row in kept], [texts[row] for row in held])
            for strength in STRENGTHS:
                guesses = _predict(known, asked, learnt, strength)
                right[features, strength] += _right(guesses, [labels[row] for row in held])
    best = max(right, key=right.__getitem__)
    score = f"{100 * right[best] / max(sum(len(labels[row]) for row in order), 1):.1f} % right there"
    return *best, f"chosen from {len(right)} by {FOLDS}-fold cross-validation on {len(order)} training rows, {score}"


def _right(guesses: dict[str, list[Any]], labels: Labels) -> int:
    """How many fields are guessed right."""
    pairs = ((name, row, value) for row, label in enumerate(labels) for name, value in label.items() if name in guesses)
    return sum(guesses[name][row] == value for name, row, value in pairs)


def _vectors(features: str, texts: Sequence[str], unseen: Sequence[str]) -> tuple[Any, Any]:
    """Sparse matrices of the texts and of the unseen texts, by the vocabulary and weights of the former."""
    vectorizer = extra("sklearn.feature_extraction.text").TfidfVectorizer
    rarest = 1 if len(texts) < 500 else 2
    fitted = [vectorizer(min_df=rarest, **settings).fit(texts) for settings in FEATURES[features]]
    stack = extra("scipy.sparse").hstack
    known, asked = (stack([part.transform(rows) for part in fitted]).tocsr() for rows in (texts, unseen))
    return known, asked


def _predict(known: Any, asked: Any, labels: Labels, strength: float) -> dict[str, list[Any]]:
    """Per field one value for each row of `asked`."""
    linear = extra("sklearn.svm").LinearSVC
    predicted = {}
    for name, (rows, values) in _columns(labels).items():
        classes = [canonical(value, ignore_case=False) for value in values]
        if not 1 < len(set(classes)) <= MAX_CLASSES:
            predicted[name] = [_most_frequent(values)] * asked.shape[0]
            continue
        model = linear(C=strength, random_state=SEED).fit(known[rows], classes)
        predicted[name] = [json.loads(guess) for guess in model.predict(asked)]
    return predicted
