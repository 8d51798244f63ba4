"""Generation: prompts are prefilled as one forest, then decoded together with a key-value cache."""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from tunesmith.data.batch import grow
from tunesmith.data.render import Renderer
from tunesmith.kernels.forest_attention import Shape

from .attention import ForestAttend, attending
from .forward import autocast
from .load import Loaded
from .padded import padded_stream
from .sampling import Completion, Piece, Sampling, Writer

__all__ = ["Completion", "Piece", "Sampling", "generate", "stream"]

BATCH = 32
"""Prompts decoded together by `generate`."""


class DecodeAttend:
    """Attention of one new token a sequence over the cache, to which it is added first."""

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]], nodes: Sequence[Tensor], room: int) -> None:
        """Copy each sequence's keys and values out of a forest's, with room for the tokens to come.

        Args:
            kept: per layer the forest's keys and values [K, N, D].
            nodes: per sequence the nodes of its tokens, int64 [T].
            room: how many tokens may follow the longest prompt.
        """
        self.length_B = torch.tensor([len(path) for path in nodes])
        most = int(self.length_B.max()) + room
        self.cache = {
            layer: (self._lay(keys, nodes, most), self._lay(values, nodes, most))
            for layer, (keys, values) in kept.items()
        }
        self.most = 0
        self._hidden: dict[int | None, Tensor] = {}

    @staticmethod
    def _lay(all_KND: Tensor, nodes: Sequence[Tensor], most: int) -> Tensor:
        groups, _, width = all_KND.shape
        laid = all_KND.new_zeros(len(nodes), groups, most, width)
        for number, path in enumerate(nodes):
            laid[number, :, : len(path)] = all_KND[:, path]
        return laid

    def advance(self) -> Tensor:
        """Positions [B] of the tokens about to be fed; call once before each step."""
        position_B = self.length_B.clone()
        self.length_B += 1
        self.most = int(self.length_B.max())
        self._hidden = {}
        return position_B

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only."""
        self.length_B = self.length_B[rows]
        self.cache = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.cache.items()}

    def _beyond(self, window: int | None, device: torch.device) -> Tensor:
        """bool [B, 1, 1, L]: places of the cache that a sequence's new token may not see; the same for all layers of a step."""
        if window not in self._hidden:
            column, last = torch.arange(self.most), self.length_B[:, None, None, None] - 1
            hidden = column > last if window is None else (column > last) | (column <= last - window)
            self._hidden[window] = hidden.to(device)
        return self._hidden[window]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        keys, values = self.cache[layer]
        batch, groups, _, width = keys.shape
        at = torch.arange(batch)
        keys[at, :, self.length_B - 1] = key[:, :, 0]
        values[at, :, self.length_B - 1] = value[:, :, 0]
        grouped = query.view(batch, groups, -1, width)
        score = (grouped @ keys[:, :, : self.most].transpose(2, 3)).float() * shape.scale
        if shape.softcap is not None:
            score = torch.tanh(score / shape.softcap) * shape.softcap
        weight = (
            score.masked_fill_(self._beyond(shape.window, score.device), float("-inf")).softmax(-1).to(values.dtype)
        )
        return (weight @ values[:, :, : self.most]).view(batch, -1, 1, width)


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
    logits_BV, attend = _prefill(loaded, prompts, max(sampling.max_tokens for sampling in samplings))
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
            attend.keep(torch.tensor(going))
            active = [active[place] for place in going]
        logits_BV = _step(loaded, attend, tokens)


def _prefill(loaded: Loaded, prompts: Sequence[list[int]], room: int) -> tuple[Tensor, DecodeAttend]:
    """Logits [B, V] behind each prompt, and the cache; what prompts share from their start is computed once."""
    forest = grow([torch.tensor(prompt).numpy() for prompt in prompts])
    nodes = [forest.nodes(number) for number in range(len(prompts))]
    last_U, back_B = torch.unique(torch.stack([path[-1] for path in nodes]), return_inverse=True)
    attend = ForestAttend(forest, keep=True)
    with attending(attend), autocast(loaded):
        out = loaded.model(
            input_ids=forest.tokens_N[None].to(loaded.device),
            position_ids=forest.depth_N[None].to(loaded.device),
            logits_to_keep=last_U.to(loaded.device),
            use_cache=False,
        )
    assert attend.kept is not None
    return out.logits[0][back_B].float(), DecodeAttend(attend.kept, nodes, room)


def _step(loaded: Loaded, attend: DecodeAttend, tokens: list[int]) -> Tensor:
    """Logits [B, V] after one more token each."""
    position_B = attend.advance()
    with attending(attend), autocast(loaded):
        out = loaded.model(
            input_ids=torch.tensor(tokens, device=loaded.device)[:, None],
            position_ids=position_B[:, None].to(loaded.device),
            use_cache=False,
        )
    found: Tensor = out.logits[:, -1].float()
    return found


def generate(loaded: Loaded, prompts: Sequence[list[int]], sampling: Sampling) -> list[Completion]:
    """A completion for each prompt, in order; prompts of like length are decoded together."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    found: dict[int, Completion] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        parts = {number: Completion() for number in chosen}
        for piece in stream(loaded, [prompts[number] for number in chosen], [sampling] * len(chosen)):
            parts[chosen[piece.index]].add(piece)
        found.update(parts)
    return [found[number] for number in range(len(prompts))]
