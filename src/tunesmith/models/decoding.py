"""What stands between two tokens of an answer: the cache of keys and values, and a step of one token for every sequence."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from tunesmith.data.batch import Forest
from tunesmith.kernels import decode
from tunesmith.kernels.forest_attention import Shape
from tunesmith.kernels.head import capped

from .attention import ForestAttend, attending
from .forward import autocast
from .fused import Decoder
from .load import Loaded

Kept = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values [K, N, D] of a forest's nodes."""


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

    @classmethod
    @abstractmethod
    def prefill(cls, loaded: Loaded, forest: Forest, nodes: Sequence[Tensor], room: int) -> tuple[Tensor, Self]:
        """Logits [B, V] behind each sequence of a forest, and the decoding that goes on from there."""

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Logits [B, V] after one more token of each sequence."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only."""


class FusedDecoding(Decoding):
    """By fused operations: one call for all layers; prompts' keys and values stay where the forest has them."""

    layers: decode.Layers

    def __init__(self, decoder: Decoder, forest: Forest, room: int) -> None:
        self.decoder, self.room, self.caches = decoder, room, list[decode.Cache]()
        self.kinds = sorted({block.rotary for block in decoder.blocks})
        paths = [segment.path for segment in forest.segments]
        self.runs = decode.Runs(paths)
        self.slot_B = torch.arange(len(paths))
        self.given_B = torch.tensor([sum(b - a for a, b in path) for path in paths])
        self.length_B = self.given_B.clone()

    @classmethod
    def prefill(cls, loaded: Loaded, forest: Forest, nodes: Sequence[Tensor], room: int) -> tuple[Tensor, Self]:
        """One pass over the forest, the head on its last nodes only."""
        decoder = loaded.decoder()
        assert decoder is not None
        decoding = cls(decoder, forest, room)
        last_B = torch.stack([path[-1] for path in nodes]).to(loaded.device)
        hidden_BD = decoder.hidden(forest, last_B, decoding.take)
        decoding.layers = decode.Layers(decoding.read(), decoding.caches)
        return decoder.logits(hidden_BD), decoding

    def take(self, key_KND: Tensor, value_KND: Tensor) -> None:
        """Keep the next layer's keys and values."""
        self.caches.append(decode.Cache.of(key_KND, value_KND, len(self.slot_B), self.room))

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only; nothing is moved."""
        self.slot_B, self.given_B, self.length_B = self.slot_B[rows], self.given_B[rows], self.length_B[rows]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Every layer, then the head."""
        if len(tokens) != len(self.slot_B) or int((self.length_B - self.given_B).max()) >= self.room:
            raise ValueError(
                f"{len(tokens)} tokens for {len(self.slot_B)} sequences with room for {self.room} new ones each"
            )
        decoder, residual = self.decoder, self.decoder.embed(torch.tensor(tokens)).contiguous()
        angles = decoder.angles(self.length_B, residual)
        cosine, sine = (torch.stack([angles[kind][side] for kind in self.kinds]) for side in (0, 1))
        step = decode.Step.of(self.slot_B, self.length_B, self.given_B, self.runs, cosine, sine)
        self.layers.pass_through(step, residual, decoder.dtype)
        self.length_B = self.length_B + 1
        if decoder.head.dtype != decoder.dtype:  # a head that learns, in float32
            return decoder.logits(decoder.last(residual, None))
        norm, head = decode.Norm.of(decoder.norm.weight, decoder.norm.eps), decode.Linear.of(decoder.head)
        return capped(decode.decode_head(norm, head, residual, decoder.dtype), decoder.softcap)

    def read(self) -> list[decode.Layer]:
        """The decoder's blocks as the compiled step wants them."""
        found = []
        for block in self.decoder.blocks:
            query, key = block.head_norms or (None, None)
            norms = {
                "before_attention": block.before_attention, "query": query, "key": key, "after_attention": block.after_attention,
                "before_feedforward": block.before_feedforward, "after_feedforward": block.after_feedforward,
            }  # fmt: skip
            linears = zip(decode.Layer.LINEARS, block.groups, strict=True)
            found.append(
                decode.Layer.of(
                    {name: decode.Norm.of(norm.weight, norm.eps) for name, norm in norms.items() if norm},
                    {name: decode.Linear.joint(group.joint.plain()) for name, group in linears},
                    block.heads,
                    block.shape,
                    block.activation,
                    self.kinds.index(block.rotary),
                )
            )
        return found


class GenericDecoding(Decoding):
    """Through transformers' own layers, with the cache behind their attention."""

    def __init__(self, loaded: Loaded, cache: Cache) -> None:
        self.loaded, self.cache = loaded, cache
        self._hidden: dict[int | None, Tensor] = {}

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences only."""
        self.cache.keep(rows)

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
