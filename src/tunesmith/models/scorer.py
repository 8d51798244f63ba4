"""Reward models as whole models: in the format of transformers' AutoModelForSequenceClassification with one label, and their scores of many answers."""

import copy
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from tunesmith.base import ModelError
from tunesmith.base.files import read_json, write_json
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row
from tunesmith.data.render import Renderer

from .heads import restore_head, scores
from .load import Loaded, Precision, load

ROWS = 8
"""Rows scored in one forward pass."""
DAY = "rendering.json"
"""Stands in a reward model's folder and holds what its template took for today when its rows were made, if it tells the date."""
SOME_DAY = "2024-07-26"
"""What the template of a model without that file is told is today: one day for ever, so that an answer is worth tomorrow what it is worth now. Templates of Llama 3
tell this one where there is no clock."""


def load_scorer(name: str, precision: Precision = "auto") -> Loaded:
    """Load a reward model, with its head; nothing of it learns. Its template tells the day that it was trained on, not the clock's.

    Raises:
        ModelError: it is missing, damaged, no decoder, or has no score with one label.
    """
    loaded = load(name, precision, scorer=True)
    loaded.today = _day(loaded.folder)
    loaded.model.requires_grad_(False)
    restore_head(loaded, loaded.folder)
    return loaded


def _day(folder: Path) -> str:
    try:
        return date.fromisoformat(read_json(folder / DAY)["today"]).isoformat()
    except FileNotFoundError:
        return SOME_DAY
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model {folder}: {DAY} does not say what day it is ({error}); get the model again") from None


def save_scorer(loaded: Loaded, folder: Path) -> None:
    """Write a model with its head, all weights plain, its tokenizer, and the day that its template tells, if it tells one.

    Raises:
        ModelError: transformers has no such form of this architecture.
    """
    from transformers import AutoModelForSequenceClassification

    config, tokenizer = copy.deepcopy(loaded.model.config), copy.deepcopy(loaded.tokenizer)
    ends = Renderer(tokenizer).ends
    # a score is read at the last token that is no padding: what pads must not be what ends an answer
    pads = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    pad = next((one for one in pads if one is not None and one not in ends), None)
    tokenizer.pad_token_id = config.pad_token_id = pad
    config.num_labels = 1
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=loaded.model.dtype)
        own = loaded.model.state_dict()
        model.load_state_dict({name: own[name] for name in model.state_dict()}, assign=True)
    except (ValueError, KeyError) as error:
        kind = config.model_type
        raise ModelError(
            f"model of type {kind!r}: transformers has no form of it that scores: {str(error).splitlines()[0]}"
        ) from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if loaded.today is not None:
        write_json(folder / DAY, {"today": loaded.today})


@torch.no_grad()
def score_rows(loaded: Loaded, rows: Sequence[Row]) -> list[list[float]]:
    """The score of each answer of each row."""
    loaded.model.eval()
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, list[float]] = {}
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        batch = Batch.of([Row(rows[number].origin, rows[number].sequences) for number in chosen])
        told = iter(scores(loaded, batch).tolist())
        for number in chosen:
            found[number] = [next(told) for _ in rows[number].sequences]
    return [found[number] for number in range(len(rows))]
