"""How the next token is chosen, and when an answer is over."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.render import Renderer

BROKEN = "\ufffd"
"""What bytes decode to that are not yet, or never, a character."""

COLDEST = 1e-6
"""Temperature below which the likeliest token is taken, as at 0: logits divided by less are no numbers any more."""
NUCLEUS = 512
"""Tokens among which `top_p` is looked for first."""


@dataclass(frozen=True)
class Sampling:
    """How to decode one prompt."""

    max_tokens: int = 128
    """At most this many new tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    seed: int | None = None
    """Makes sampling reproducible."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    logprobs: bool = False
    """Keep log-probabilities of the tokens."""
    top_logprobs: int = 0
    """Keep this many of the likeliest alternatives of each token."""


@dataclass(frozen=True)
class Piece:
    """One decode step of one prompt."""

    index: int
    """Which prompt."""
    token: int
    text: str
    """Text that is now sure to be part of the answer; what could begin a stop string or is half a character is held back."""
    logprob: float
    """Natural log-probability of the token under the model, before temperature and top_p; nan if not asked for."""
    top: tuple[tuple[int, float], ...]
    finish: str | None
    """`stop`, `length`, or None while it goes on."""


@dataclass
class Completion:
    """A finished answer."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    """Every token decoded, the one that ended it included."""
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    finish: str = ""

    def add(self, piece: Piece) -> None:
        """Take the next piece."""
        self.text += piece.text
        self.tokens.append(piece.token)
        self.logprobs.append(piece.logprob)
        self.top.append(piece.top)
        self.finish = piece.finish or ""


class Text:
    """Tokens that come one by one, as text; what a token costs does not grow with how many there were."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self.tokens: list[int] = []
        self.sure, self._since, self._until = "", 0, 0

    def add(self, token: int) -> str:
        """The text of all tokens so far, as decoding them at once gives it; but a character that was whole stays, also where bytes follow that are none.

        Only those behind the last whole character are decoded, beside the few before them, on which it may depend how they begin.
        """
        self.tokens.append(token)
        before = self.renderer.decode(self.tokens[self._since : self._until])
        new = self.renderer.decode(self.tokens[self._since :])[len(before) :]
        text = self.sure + new
        if new and not new.endswith(BROKEN):
            self.sure, self._since, self._until = text, self._until, len(self.tokens)
        return text


class Writer:
    """Chooses the tokens of one prompt and turns them into text."""

    def __init__(self, index: int, sampling: Sampling, renderer: Renderer) -> None:
        self.index, self.sampling, self.renderer = index, sampling, renderer
        self.told = Text(renderer)
        self.text, self.shown = "", 0
        self.generator = torch.Generator()
        if sampling.seed is not None:
            self.generator.manual_seed(sampling.seed)
        elif sampling.temperature >= COLDEST:
            self.generator.seed()

    def take(self, logits_V: Tensor) -> Piece:
        """The next token, float32 logits [V] given."""
        token = self._choose(logits_V)
        logprob = float("nan")
        top: tuple[tuple[int, float], ...] = ()
        if self.sampling.logprobs or self.sampling.top_logprobs:
            logprob, top = self._measure(logits_V, token)
        if token in self.renderer.ends:
            return Piece(self.index, token, self._rest(), logprob, top, "stop")
        self.text = self.told.add(token)
        text, stopped = self._advance()
        if stopped:
            return Piece(self.index, token, text, logprob, top, "stop")
        if len(self.told.tokens) >= self.sampling.max_tokens:
            return Piece(self.index, token, text + self._rest(), logprob, top, "length")
        return Piece(self.index, token, text, logprob, top, None)

    def _choose(self, logits_V: Tensor) -> int:
        if self.sampling.temperature < COLDEST:
            return int(logits_V.cpu().numpy().argmax())  # a tenth of the time that torch takes
        probability_V = (logits_V.cpu() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p >= 1:
            return self._draw(probability_V)
        likely_K, place_K = _nucleus(probability_V, self.sampling.top_p)
        return int(place_K[self._draw(likely_K)])

    def _draw(self, weight_K: Tensor) -> int:
        """A place, by weight: where a uniform number falls in the running sum. Five times as fast as torch.multinomial, which draws one for each place."""
        below_K = weight_K.cumsum(0).numpy()
        point = torch.rand((), generator=self.generator, dtype=torch.float64)
        return int(np.searchsorted(below_K, float(point) * float(below_K[-1]), side="right"))

    def _measure(self, logits_V: Tensor, token: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        logp_V = logits_V.log_softmax(-1)
        best = logp_V.topk(self.sampling.top_logprobs) if self.sampling.top_logprobs else None
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
        return float(logp_V[token]), top

    def _advance(self) -> tuple[str, bool]:
        """Text newly safe to show, and whether a stop string ended the answer."""
        text = self.text
        found = [place for place in (text.find(stop) for stop in self.sampling.stop) if place >= 0]
        if found:
            new = text[self.shown : max(self.shown, min(found))]
            self.shown += len(new)
            return new, True
        safe = len(text.rstrip(BROKEN)) - _overhang(text.rstrip(BROKEN), self.sampling.stop)
        new = text[self.shown : max(self.shown, safe)]
        self.shown += len(new)
        return new, False

    def _rest(self) -> str:
        """What was held back, now that nothing follows."""
        new = self.text[self.shown :]
        self.shown = len(self.text)
        return new


def _nucleus(probability_V: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens that together have a probability of at least `top_p` (Holtzman et al., 2020, arXiv:1904.09751), and their places."""
    for count in (min(NUCLEUS, len(probability_V)), len(probability_V)):  # to sort all of them takes long
        ordered_K, place_K = probability_V.topk(count)
        before_K = ordered_K.cumsum(0) - ordered_K
        if before_K[-1] >= top_p:
            break
    within = int((before_K < top_p).sum())
    return ordered_K[:within], place_K[:within]


def _overhang(text: str, stops: Iterable[str]) -> int:
    """Length of the longest end of `text` with which a stop string could begin."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
