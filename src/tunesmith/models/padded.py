"""Generation for models whose attention takes no forest: transformers' own cache, one prompt after the other."""

from collections.abc import Iterator, Sequence

import torch

from tunesmith.data.render import Renderer

from .forward import autocast
from .load import Loaded
from .sampling import Piece, Sampling, Writer


@torch.no_grad()
def padded_stream(loaded: Loaded, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> Iterator[Piece]:
    """As `stream`, by the plain way: also the obvious twin that tests hold the fast one against."""
    renderer = Renderer(loaded.tokenizer)
    for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        writer = Writer(number, sampling, renderer)
        ids, cache = torch.tensor([prompt], device=loaded.device), None
        while True:
            with autocast(loaded):
                out = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True)
            piece = writer.take(out.logits[0, -1].float())
            yield piece
            if piece.finish is not None:
                break
            ids, cache = torch.tensor([[piece.token]], device=loaded.device), out.past_key_values
