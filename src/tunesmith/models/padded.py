"""Generation for models whose attention takes no forest: transformers' own cache, one sequence after the other."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .decoding import Decoding, Feed
from .forward import autocast
from .load import Loaded

CACHES = ("past_key_values", "cache_params")
"""What attention and recurrent models call what they remember; one that gives neither reads everything again."""


class PaddedDecoding(Decoding):
    """By the plain way: also the obvious twin that tests hold the fast ones against."""

    paged: ClassVar[bool] = False

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.held: dict[int, tuple[dict[str, Any], list[int]]] = {}  # what a sequence remembers, and its tokens

    @classmethod
    def of(cls, loaded: Loaded, pages: int) -> Self:
        """Pages are not what bounds it."""
        return cls(loaded)

    def copy(self, source: int, target: int) -> None:
        """Nothing is shared."""

    def forget(self, sequence: int) -> None:
        """Its cache goes."""
        self.held.pop(sequence, None)

    def step(self, feeds: Sequence[Feed]) -> Tensor:
        """One pass for each sequence."""
        return torch.stack([self._pass(feed) for feed in feeds])

    def _pass(self, feed: Feed) -> Tensor:
        memory, before = self.held.get(feed.sequence, ({}, []))
        tokens = [*before, *feed.tokens]
        with autocast(self.loaded):
            ids = torch.tensor([feed.tokens if memory else tokens], device=self.loaded.device)
            out = self.loaded.model(input_ids=ids, use_cache=True, **memory)
        self.held[feed.sequence] = {name: out[name] for name in CACHES if name in out}, tokens
        found: Tensor = out.logits[0, -1].float()
        return found
