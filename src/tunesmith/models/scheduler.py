"""Continuous batching: answers join a running batch at any step and leave it when they are finished (Yu et al., 2022, Orca, OSDI)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .decoding import Decoding, Feed, FusedDecoding, GenericDecoding
from .load import Loaded
from .padded import PaddedDecoding
from .pages import Held, Pages, agreeing
from .sampling import Piece, Sampling, Writer

WORTH = 16
"""Common tokens for which a prompt waits until another has read them."""


@dataclass(eq=False)
class Course:
    """One prompt on its way to an answer."""

    number: int
    prompt: list[int]
    writer: Writer
    held: Held
    """Its pages; none as long as it waits."""
    token: int = -1
    """The last one, still to be fed."""

    @property
    def reading(self) -> bool:
        """Whether tokens of its prompt are still to be computed."""
        return self.held.length < len(self.prompt)


class Scheduler:
    """A batch of answers under way, and the prompts that wait to join it.

    Each step gives every answer its next token, and reads some tokens of prompts in the same pass.

    Args:
        loaded: the model; it must not change while this lives, but by its `turn`.
        batch: answers under way at most.
        chunk: tokens of prompts read in one step at most; a longer prompt takes several, so that it holds nobody up for long.
        room: tokens whose keys and values can be there at a time.
        keep: whether those of finished answers and their prompts are kept, until their room is needed, for prompts that begin alike.
    """

    def __init__(self, loaded: Loaded, batch: int, chunk: int, room: int, keep: bool) -> None:
        loaded.model.eval()
        self.batch, self.chunk, self.turn = batch, chunk, loaded.turn
        self.renderer, self.prefix = loaded.renderer(), loaded.prefix
        count = Pages.needed(room)
        self.decoding = decoding_of(loaded).of(loaded, count)
        paged = self.decoding.paged
        self.pages = Pages(count, self.decoding.copy, keep and paged, paged)
        self.waiting: list[Course] = []
        self.running: list[Course] = []
        self.reused = 0
        """Tokens of prompts that did not have to be read."""

    def add(self, number: int, prompt: Sequence[int], sampling: Sampling) -> None:
        """Queue a prompt; `number`, not in use, is what its pieces will be known by.

        Raises:
            ValueError: the prompt is empty, or its answer might not fit even if it were alone.
        """
        whole = [*self.prefix, *prompt]
        if not prompt or Pages.needed(len(whole) + sampling.max_tokens) > self.pages.count:
            raise ValueError(f"a prompt of {len(whole)} tokens with {sampling.max_tokens} new ones does not fit")
        self.waiting.append(Course(number, whole, Writer(number, sampling, self.renderer), Held([], 0)))

    def cancel(self, number: int) -> None:
        """Drop an answer; its place is free from the next step on. Harmless if it is finished."""
        self.waiting = [one for one in self.waiting if one.number != number]
        for one in [one for one in self.running if one.number == number]:
            self._leave(one)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.running)

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """Let in who can be, pass once through the model, and choose the next token of every answer whose prompt is read."""
        self._admit()
        feeds = self._feeds()
        if not feeds:
            return []
        self.turn()
        courses = {one.number: one for one in self.running}
        logits_BV = self.decoding.step(feeds)
        for feed in feeds:
            self.pages.commit(courses[feed.sequence].held, feed.tokens)
        wanted = [courses[feed.sequence] for feed in feeds if feed.wanted]
        return [self._choose(one, logits_V) for one, logits_V in zip(wanted, logits_BV, strict=True)]

    def _choose(self, one: Course, logits_V: torch.Tensor) -> Piece:
        piece = one.writer.take(logits_V)
        one.token = piece.token
        if piece.finish is not None:
            self._leave(one)
        return piece

    def _leave(self, one: Course) -> None:
        self.running.remove(one)
        self.pages.close(one.held)
        self.decoding.forget(one.number)

    def _admit(self) -> None:
        """In the order they came; who waits for a common prefix is passed by, who waits for memory is not."""
        for one in list(self.waiting):
            if len(self.running) >= self.batch:
                return
            if self._being_read(one.prompt):
                continue
            held = self.pages.open(one.prompt, len(one.prompt) + one.writer.sampling.max_tokens)
            if held is None:
                return
            one.held = held
            self.reused += held.length
            self.waiting.remove(one)
            self.running.append(one)

    def _being_read(self, prompt: list[int]) -> bool:
        """Whether an answer under way is about to compute more of this prompt's beginning than is there."""
        if not self.pages.share:
            return False
        common = max((_ahead(other, prompt) for other in self.running if other.reading), default=0)
        return common >= WORTH and common >= self.pages.match(prompt)[2] + WORTH

    def _feeds(self) -> list[Feed]:
        """The next token of every answer, and so many of prompts as a step may read."""
        left, feeds = self.chunk, []
        for one in self.running:
            tokens = [one.token]
            if one.reading:
                most = left if self.decoding.paged else len(one.prompt)
                tokens = one.prompt[one.held.length : one.held.length + most]
                left -= len(tokens)
            if tokens:
                start = one.held.length
                self.pages.extend(one.held, len(tokens))
                last = start + len(tokens) >= len(one.prompt)
                feeds.append(Feed(one.number, tokens, start, one.held.numbers, last))
        return feeds


def _ahead(other: Course, prompt: list[int]) -> int:
    """Common tokens of a prompt and of one that has not yet read them all."""
    common = agreeing(other.prompt, prompt)
    return common if common > other.held.length else 0


@torch.no_grad()
def cache_bytes(loaded: Loaded, room: int) -> int:
    """Bytes of the keys and values of `room` tokens, as a step of one token shows; 0 where none are kept in pages."""
    loaded.model.eval()
    loaded.turn()
    decoding = decoding_of(loaded).of(loaded, 1)
    decoding.step([Feed(0, [0], 0, [0])])
    return decoding.size * Pages.needed(room)


def decoding_of(loaded: Loaded) -> type[Decoding]:
    """How a model decodes."""
    if not loaded.forest:
        return PaddedDecoding
    decoder = loaded.decoder()
    return GenericDecoding if decoder is None or not decoder.paired else FusedDecoding
