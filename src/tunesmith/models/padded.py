"""Generation for models whose attention takes no forest: transformers' own cache, one prompt after the other."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunesmith.data.render import Renderer

from .forward import autocast
from .load import Loaded
from .sampling import Piece, Sampling, Writer

CACHES = ("past_key_values", "cache_params")
"""What attention and recurrent models call what they remember; one that gives neither reads everything again."""


@torch.no_grad()
def padded_stream(loaded: Loaded, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> Iterator[Piece]:
    """As `stream`, by the plain way: also the obvious twin that tests hold the fast one against."""
    renderer = Renderer(loaded.tokenizer)
    for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        writer = Writer(number, sampling, renderer)
        ids = torch.tensor([prompt], device=loaded.device)
        held: dict[str, Any] = {}
        while True:
            with autocast(loaded):
                out = loaded.model(input_ids=ids, use_cache=True, **held)
            piece = writer.take(out.logits[0, -1].float())
            yield piece
            if piece.finish is not None:
                break
            held = {name: out[name] for name in CACHES if name in out}
            new = torch.tensor([[piece.token]], device=loaded.device)
            ids = new if held else torch.cat([ids, new], 1)
