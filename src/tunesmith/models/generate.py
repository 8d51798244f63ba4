"""Generation: a set of prompts through one continuous batch; what they share from their start is computed once."""

from collections.abc import Generator, Sequence

from tunesmith.kernels.decode import PAGE

from .load import Loaded
from .pages import Pages
from .sampling import Completion, Piece, Sampling
from .scheduler import Scheduler

__all__ = ["Completion", "Piece", "Sampling", "generate", "stream"]

BATCH = 64
"""Answers under way at a time."""
CHUNK = 512
"""Tokens of prompts read in one step."""


def stream(loaded: Loaded, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> Generator[Piece, None, None]:
    """Answer prompts, yielding a piece for each token of each; close the generator to stop early.

    Args:
        loaded: the model.
        prompts: token ids, none empty; those that begin alike should stand side by side.
        samplings: one per prompt.
    """
    asked = list(zip(prompts, samplings, strict=True))
    before = len(loaded.prefix)
    needs = sorted(
        (Pages.needed(before + len(prompt) + sampling.max_tokens) for prompt, sampling in asked), reverse=True
    )
    scheduler = Scheduler(loaded, BATCH, CHUNK, PAGE * sum(needs[:BATCH]), keep=False)
    for number, (prompt, sampling) in enumerate(asked):
        scheduler.add(number, prompt, sampling)
    while not scheduler.idle:
        yield from scheduler.step()


def generate(loaded: Loaded, prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling]) -> list[Completion]:
    """A completion for each prompt, in order.

    Args:
        loaded: the model.
        prompts: token ids, none empty; several answers to one prompt are asked for by repeating it, and it is read once.
        sampling: of all prompts, or one for each.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    order = sorted(range(len(prompts)), key=lambda number: prompts[number])  # what begins alike goes together
    found = [Completion() for _ in prompts]
    if not prompts:
        return found
    for piece in stream(loaded, [prompts[number] for number in order], [samplings[number] for number in order]):
        found[order[piece.index]].add(piece)
    return found
