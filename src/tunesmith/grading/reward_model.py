"""A reward model as a grader: what a model that objective `reward` trained says of answers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from tunesmith.base import DataError
from tunesmith.base.artifact import MANIFEST
from tunesmith.base.run import deployed
from tunesmith.data.example import Example, Row
from tunesmith.models.find import files_of
from tunesmith.models.load import Loaded, Precision, locate
from tunesmith.models.scorer import load_scorer, score_rows

from .base import HEADLINE, Paying
from .score_error import mean
from .statistics import Figure


class RewardModel(Paying):
    """What a reward model says of an answer, on its own scale. It is loaded when it is first asked, and stays; an answer that was cut off is read as if it had ended.
    Where its template tells the date, that is always the one its training rows were made on."""

    kind: Literal["reward_model"] = "reward_model"
    unit: ClassVar[str] = "reward"
    digits: ClassVar[int] = 2
    least: ClassVar[float] = -math.inf
    run: str = "runs/reward"
    """Folder of a run that deployed a reward model; or a model in the format of transformers' AutoModelForSequenceClassification, with one label."""
    precision: Precision = "auto"
    """What its products are computed in."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The manifest of what was deployed, or the files of a model that is no run's."""
        found = deployed(self.run)
        return files_of(self.run) if found is None else (found / MANIFEST,)

    @property
    def memory(self) -> int:
        """As much as its files; loaded in bf16 it is less."""
        return sum(path.stat().st_size for path in locate(self._model).glob("*.safetensors"))

    def check(self, examples: Sequence[Example]) -> None:
        """Only that rows ask something: its model is not loaded for that."""
        for example in examples:
            _answered(example, example.gold)

    def worth(self, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
        """The score of each answer."""
        loaded = _scorer(self._model, self.precision)
        asked = [_answered(example, answer) for example, answer in zip(examples, answers, strict=True)]
        rows = [_usable(row, example) for row, example in zip(loaded.renderer().rows(asked), asked, strict=True)]
        return [score for (score,) in score_rows(loaded, rows)]

    def figures(self, examples: Sequence[Example], outputs: Sequence[str]) -> dict[str, Figure]:
        """The mean, over rows."""
        worth_N = np.array(self.worth(outputs, examples), dtype=np.float64)
        return {HEADLINE: Figure(np.stack([worth_N, np.ones_like(worth_N)], 1), mean)}

    @property
    def _model(self) -> str:
        """Name of the model, as `locate` takes it."""
        found = deployed(self.run)
        return self.run if found is None else str(found / "model")


@lru_cache(maxsize=4)
def _scorer(name: str, precision: Precision) -> Loaded:
    return load_scorer(name, precision)


def _answered(example: Example, answer: str) -> Example:
    if not example.prompt:
        raise DataError(f"{example.origin}: plain text has no prompt; a reward model judges answers")
    said = ({"role": "assistant", "content": answer},)
    return replace(example, prompt=example.asked, answers=(said,), columns={})


def _usable(row: Row | DataError, example: Example) -> Row:
    if isinstance(row, DataError):
        raise DataError(f"{example.origin}: the reward model cannot read an answer to it: {row}")
    return row
