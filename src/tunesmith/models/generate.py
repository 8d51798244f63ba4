"""Generation: prompts are prefilled as one forest, then decoded together with a key-value cache."""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from tunesmith.data.batch import grow
from tunesmith.data.render import Renderer

from .decoding import Decoding, FusedDecoding, GenericDecoding
from .load import Loaded
from .padded import padded_stream
from .sampling import Completion, Piece, Sampling, Writer

__all__ = ["Completion", "Piece", "Sampling", "generate", "stream"]

BATCH = 64
"""Prompts decoded together by `generate`."""


@torch.no_grad()
def stream(loaded: Loaded, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> Generator[Piece, None, None]:
    """Decode prompts together, yielding a piece for each token of each; close the generator to stop early.

    Args:
        loaded: the model.
        prompts: token ids, none empty.
        samplings: one per prompt.
    """
    loaded.model.eval()
    if not loaded.forest:
        yield from padded_stream(loaded, prompts, samplings)
        return
    renderer = Renderer(loaded.tokenizer)
    writers = [Writer(number, sampling, renderer) for number, sampling in enumerate(samplings)]
    logits_BV, decoding = _prefill(loaded, prompts, max(sampling.max_tokens for sampling in samplings))
    active = list(range(len(prompts)))
    while True:
        tokens, going = [], []
        for place, number in enumerate(active):
            piece = writers[number].take(logits_BV[place])
            if piece.finish is None:
                tokens.append(piece.token)
                going.append(place)
            yield piece
        if not going:
            return
        if len(going) < len(active):
            decoding.keep(torch.tensor(going))
            active = [active[place] for place in going]
        logits_BV = decoding.step(tokens)


def _prefill(loaded: Loaded, prompts: Sequence[list[int]], room: int) -> tuple[Tensor, Decoding]:
    """Logits [B, V] behind each prompt, and what to go on from; what prompts share from their start is computed once."""
    forest = grow([torch.tensor(prompt).numpy() for prompt in prompts])
    nodes = [forest.nodes(number) for number in range(len(prompts))]
    decoder = loaded.decoder()
    kind = GenericDecoding if decoder is None or not decoder.paired else FusedDecoding
    return kind.prefill(loaded, forest.to(loaded.device), nodes, room)


def generate(loaded: Loaded, prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
    """A completion for each prompt, in order, by one way of sampling or by one each; prompts of like length are decoded together."""
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, Completion] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        parts = {number: Completion() for number in chosen}
        for piece in stream(loaded, [prompts[number] for number in chosen], [samplings[number] for number in chosen]):
            parts[chosen[piece.index]].add(piece)
        found.update(parts)
    return [found[number] for number in range(len(prompts))]
