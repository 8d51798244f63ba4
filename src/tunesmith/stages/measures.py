"""What is measured of a model before and after pruning: perplexity, zeros, how small its file could be, and how quickly it reads and writes."""

import copy
import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.base import Artifact
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_split
from tunesmith.kernels.decode import PAGE
from tunesmith.methods.pruning.base import kind_of, linears, prunable_layers
from tunesmith.models.decoding import Decoding, Feed
from tunesmith.models.load import DTYPES, Loaded, Precision, cast, resolve_precision, served
from tunesmith.models.scheduler import decoding_of

from .general import general_examples
from .judge import likelihoods

WATCHED = 64
"""Validation rows whose perplexity is taken."""
PIECE = 1 << 16
"""Weights of each matrix that are compressed to see how small a file could be."""

PROMPT, ANSWER, ROUNDS = 128, 24, 5
"""Tokens read and written in each round, one sequence at a time, and how often."""


@dataclass(frozen=True)
class Pace:
    """Tokens a second, in the median over rounds."""

    reading: float
    writing: float


@torch.no_grad()
def paces(models: Sequence[Loaded], seed: int) -> list[Pace]:
    """One of each model; they take turns, so that what else the machine does slows all alike. A first round is not counted."""
    vocabulary = min(loaded.model.config.get_text_config().vocab_size for loaded in models)
    tokens = np.random.default_rng(seed).integers(0, vocabulary, PROMPT + ANSWER).tolist()
    decodings = [decoding_of(loaded).of(loaded, -(-len(tokens) // PAGE)) for loaded in models]
    rounds = [[_round(decoding, tokens) for decoding in decodings] for _ in range(1 + ROUNDS)][1:]
    medians = np.median(np.array(rounds), axis=0)
    return [Pace(PROMPT / reading, ANSWER / writing) for reading, writing in medians.tolist()]


def _round(decoding: Decoding, tokens: list[int]) -> tuple[float, float]:
    """Seconds in which a prompt was read, and in which an answer, told in advance so that all are as long, was written."""
    started = time.perf_counter()
    _feed(decoding, tokens[:PROMPT], 0)
    read = time.perf_counter()
    for place in range(PROMPT, len(tokens)):
        _feed(decoding, tokens[place : place + 1], place)
    written = time.perf_counter()
    decoding.forget(0)
    return read - started, written - read


def _feed(decoding: Decoding, tokens: list[int], start: int) -> None:
    pages = list(range(-(-(start + len(tokens)) // PAGE)))
    int(decoding.step([Feed(0, tokens, start, pages)]).argmax())  # waits for a GPU as choosing the next token does


def as_served(loaded: Loaded, precision: Precision) -> Loaded:
    """A copy of a model in float32, in the precision it would be served in."""
    chosen = resolve_precision(served(precision))
    model = cast(copy.deepcopy(loaded.model), DTYPES[chosen])
    return Loaded(loaded.name, loaded.folder, model, loaded.tokenizer, chosen, forest=loaded.forest, today=loaded.today)


def perplexities(loaded: Loaded, prepared: Artifact) -> dict[str, float | None]:
    """Of a few validation rows, and of the general set that is bundled."""
    general = [loaded.renderer().row(example) for example in general_examples()]
    validation = load_split(prepared.path, "validation")[:WATCHED]
    return {
        "validation": _perplexity(loaded, validation) if validation else None,
        "general": _perplexity(loaded, general),
    }


def _perplexity(loaded: Loaded, rows: Sequence[Row]) -> float:
    found = likelihoods(loaded, rows)
    return math.exp(min(700.0, sum(one.loss for one in found) / sum(one.tokens for one in found)))


def zeros(model: Any) -> dict[str, float]:
    """Share of the weights that are zero by kind of linear layer, and of `all` of them."""
    counts: dict[str, list[int]] = {}
    for layer in prunable_layers(model):
        for name, linear in linears(layer):
            for kind in (kind_of(name), "all"):
                pair = counts.setdefault(kind, [0, 0])
                pair[0] += int((linear.weight == 0).sum())
                pair[1] += linear.weight.numel()
    return {kind: none / every for kind, (none, every) in counts.items()}


def deflated(model: Any) -> float:
    """Size of the linear layers' weights in float32, compressed by zlib, as a share of what it was; looked at on a piece of each."""
    whole = small = 0
    for layer in prunable_layers(model):
        for _, linear in linears(layer):
            piece = linear.weight.detach().flatten()[:PIECE].float().cpu().numpy().tobytes()
            whole, small = whole + len(piece), small + len(zlib.compress(piece, 1))
    return small / whole
