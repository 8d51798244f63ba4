"""What stands between two tokens of an answer: the cache of keys and values, and a step of one token for every sequence."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from tunesmith.data.batch import Forest
from tunesmith.kernels import native
from tunesmith.kernels.forest_attention import Shape, rotate

from .attention import ForestAttend, attending
from .forward import autocast
from .fused import Decoder, Kept
from .load import Loaded


class Cache:
    """Keys and values [slots, K, room, D] of each layer; the sequences going on sit in some of the slots."""

    def __init__(self, kept: Kept, nodes: Sequence[Tensor], room: int) -> None:
        """Copy each sequence's keys and values out of a forest's, with room for the tokens to come.

        Args:
            kept: per layer the forest's keys and values [K, N, D].
            nodes: per sequence the nodes of its tokens, int64 [T].
            room: how many tokens may follow the longest prompt.
        """
        device = kept[0][0].device
        self.slot_B = torch.arange(len(nodes), device=device)
        self.length_B = torch.tensor([len(path) for path in nodes], device=device)
        self.room = int(self.length_B.max()) + room
        self.layers = [(self._lay(keys, nodes), self._lay(values, nodes)) for keys, values in kept]

    def _lay(self, all_KND: Tensor, nodes: Sequence[Tensor]) -> Tensor:
        groups, _, width = all_KND.shape
        laid = all_KND.new_zeros(len(nodes), groups, self.room, width)
        for number, path in enumerate(nodes):
            laid[number, :, : len(path)] = all_KND[:, path.to(all_KND.device)]
        return laid

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only; nothing is moved."""
        rows = rows.to(self.slot_B.device)
        self.slot_B, self.length_B = self.slot_B[rows], self.length_B[rows]


class Decoding(ABC):
    """Answers under way."""

    cache: Cache

    @classmethod
    @abstractmethod
    def prefill(cls, loaded: Loaded, forest: Forest, nodes: Sequence[Tensor], room: int) -> tuple[Tensor, Self]:
        """Logits [B, V] behind each sequence of a forest, and the decoding that goes on from there."""

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token of each sequence."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only."""
        self.cache.keep(rows)


class FusedDecoding(Decoding):
    """By fused operations."""

    def __init__(self, decoder: Decoder, cache: Cache) -> None:
        self.decoder, self.cache = decoder, cache

    @classmethod
    def prefill(cls, loaded: Loaded, forest: Forest, nodes: Sequence[Tensor], room: int) -> tuple[Tensor, Self]:
        """One pass over the forest, the head on its last nodes only."""
        decoder, kept = loaded.decoder(), Kept()
        assert decoder is not None
        last_B = torch.stack([path[-1] for path in nodes]).to(loaded.device)
        hidden_BD = decoder.hidden(forest, last_B, kept)
        return decoder.logits(hidden_BD), cls(decoder, Cache(kept, nodes, room))

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Each layer attends by one operation, which also puts the new key and value into the cache."""
        decoder, cache = self.decoder, self.cache
        residual, update = decoder.embed(torch.tensor(tokens, device=cache.slot_B.device)), None
        angles = decoder.angles(cache.length_B, residual)
        heads = decoder.blocks[0].heads
        scratch = residual.new_empty(len(tokens), heads.count, cache.room)
        for block, (keys, values) in zip(decoder.blocks, cache.layers, strict=True):
            residual, joint = decoder.project(block, residual, update)
            rotate(joint, *angles[block.rotary], block.heads)
            width, free = heads.count * heads.width, block.out.joint.room
            attended = joint.new_zeros(len(tokens), width + free)
            window = cache.room if block.shape.window is None else block.shape.window
            native.run(
                "decode_attention", joint.dtype, joint, keys, values, cache.slot_B, cache.length_B, attended, width + free, scratch,
                len(tokens), heads.count, heads.groups, heads.width, cache.room, window, block.shape.scale, block.shape.softcap or 0.0,
            )  # fmt: skip
            residual, update = decoder.feed(block, residual, attended)
        cache.length_B += 1
        return decoder.logits(decoder.last(residual, update))


class GenericDecoding(Decoding):
    """Through transformers' own layers, with the cache behind their attention."""

    def __init__(self, loaded: Loaded, cache: Cache) -> None:
        self.loaded, self.cache = loaded, cache
        self._hidden: dict[int | None, Tensor] = {}

    @classmethod
    def prefill(cls, loaded: Loaded, forest: Forest, nodes: Sequence[Tensor], room: int) -> tuple[Tensor, Self]:
        """One pass over the forest, the head on its last nodes only."""
        last_U, back_B = torch.unique(torch.stack([path[-1] for path in nodes]), return_inverse=True)
        attend = ForestAttend(forest, keep=True)
        with attending(attend), autocast(loaded):
            out = loaded.model(
                input_ids=forest.tokens_N[None],
                position_ids=forest.depth_N[None],
                logits_to_keep=last_U.to(loaded.device),
                use_cache=False,
            )
        assert attend.kept is not None
        kept = [attend.kept[layer] for layer in sorted(attend.kept)]
        return out.logits[0][back_B.to(loaded.device)].float(), cls(loaded, Cache(kept, nodes, room))

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One pass over the new tokens."""
        device, position_B = self.loaded.device, self.cache.length_B.clone()
        self.cache.length_B += 1
        self._hidden = {}
        with attending(self), autocast(self.loaded):
            out = self.loaded.model(
                input_ids=torch.tensor(tokens, device=device)[:, None],
                position_ids=position_B[:, None],
                use_cache=False,
            )
        found: Tensor = out.logits[:, -1].float()
        return found

    def _beyond(self, most: int, window: int | None) -> Tensor:
        """bool [B, 1, 1, L]: places of the cache that a sequence's new token may not see; the same for all layers of a step."""
        if window not in self._hidden:
            length_B = self.cache.length_B
            column, last = torch.arange(most, device=length_B.device), length_B[:, None, None, None] - 1
            self._hidden[window] = column > last if window is None else (column > last) | (column <= last - window)
        return self._hidden[window]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        """Attention of one new token a sequence over the cache, to which it is added first."""
        cache = self.cache
        keys, values = cache.layers[layer]
        groups, width, most = keys.shape[1], keys.shape[3], int(cache.length_B.max())
        keys[cache.slot_B, :, cache.length_B - 1] = key[:, :, 0]
        values[cache.slot_B, :, cache.length_B - 1] = value[:, :, 0]
        mine_keys, mine_values = keys[cache.slot_B, :, :most], values[cache.slot_B, :, :most]
        grouped = query.view(len(query), groups, -1, width)
        score = (grouped @ mine_keys.transpose(2, 3)).float() * shape.scale
        if shape.softcap is not None:
            score = torch.tanh(score / shape.softcap) * shape.softcap
        weight = score.masked_fill_(self._beyond(most, shape.window), float("-inf")).softmax(-1).to(values.dtype)
        return (weight @ mine_values).view(len(query), -1, 1, width)
