"""One step of generation: new tokens of several sequences pass through the model, and their keys and values stay in pages."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tunesmith.kernels import decode
from tunesmith.kernels.decode import PAGE
from tunesmith.kernels.forest_attention import Shape
from tunesmith.kernels.head import capped

from .attention import attending
from .forward import autocast
from .fused import Decoder
from .load import Loaded


@dataclass(frozen=True)
class Feed:
    """The next tokens of one sequence."""

    sequence: int
    """Tells sequences apart."""
    tokens: Sequence[int]
    start: int
    """Position of the first."""
    pages: Sequence[int]
    """Numbers of the pages of its positions up to the last of these tokens."""
    wanted: bool = True
    """Whether logits behind the last token are asked for."""


class Decoding(ABC):
    """A model with the keys and values of answers under way."""

    paged: ClassVar[bool] = True
    """Whether it keeps them in pages; else prompts must come whole, and nothing can be shared."""

    @classmethod
    @abstractmethod
    def of(cls, loaded: Loaded, pages: int) -> Self:
        """With room for so many pages."""

    @abstractmethod
    def step(self, feeds: Sequence[Feed]) -> Tensor:
        """Logits [B, V], float32, behind the last token of each feed that wants them."""

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """Copy a page to another."""

    @property
    def size(self) -> int:
        """Bytes that its pages take where all are in use; models of which transformers' own layers are a part show it with their first tokens."""
        return 0

    def forget(self, sequence: int) -> None:  # noqa: B027  (nothing to do where pages hold everything)
        """A sequence goes on no further."""


class FusedDecoding(Decoding):
    """By fused operations: one call for all layers, whatever the rows."""

    def __init__(self, decoder: Decoder, pages: int) -> None:
        self.decoder = decoder
        self.kinds = sorted({block.rotary for block in decoder.blocks})
        self.layers = decode.Layers(self.read(), pages, decoder.dtype)

    @classmethod
    def of(cls, loaded: Loaded, pages: int) -> Self:
        """With room for so many pages."""
        decoder = loaded.decoder()
        assert decoder is not None
        return cls(decoder, pages)

    @property
    def size(self) -> int:
        """Bytes of the storage, which takes memory as it is written."""
        return self.layers.storage.pages.nbytes

    def copy(self, source: int, target: int) -> None:
        """Copy a page to another."""
        self.layers.storage.copy(source, target)

    def step(self, feeds: Sequence[Feed]) -> Tensor:
        """Every layer, then the head."""
        decoder, counts = self.decoder, [len(feed.tokens) for feed in feeds]
        residual = decoder.embed(torch.tensor([token for feed in feeds for token in feed.tokens])).contiguous()
        places = [feed.start + number for feed in feeds for number in range(len(feed.tokens))]
        angles = decoder.angles(torch.tensor(places), residual)
        cosine, sine = (torch.stack([angles[kind][side] for kind in self.kinds]) for side in (0, 1))
        starts, tables = [feed.start for feed in feeds], [feed.pages for feed in feeds]
        self.layers.pass_through(decode.Step.of(counts, starts, tables, cosine, sine), residual)
        last_BD = residual[_wanted(feeds)]
        if decoder.head.dtype != decoder.dtype:  # a head that learns, in float32
            return decoder.logits(decoder.last(last_BD, None))
        norm, head = decode.Norm.of(decoder.norm.weight, decoder.norm.eps), decode.Linear.of(decoder.head)
        return capped(decode.decode_head(norm, head, last_BD, decoder.dtype), decoder.softcap)

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
                    {name: decode.Linear.joint(group.joint) for name, group in linears},
                    block.heads,
                    block.shape,
                    block.activation,
                    self.kinds.index(block.rotary),
                )
            )
        return found


class GenericDecoding(Decoding):
    """Through transformers' own layers, with the pages behind their attention."""

    def __init__(self, loaded: Loaded, pages: int) -> None:
        self.loaded, self.slots = loaded, pages * PAGE
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values [slots, K, D]

    @classmethod
    def of(cls, loaded: Loaded, pages: int) -> Self:
        """With room for so many pages."""
        return cls(loaded, pages)

    @property
    def size(self) -> int:
        """Bytes of all layers' keys and values, which a GPU takes at the first tokens."""
        return sum(one.nbytes for pair in self.layers.values() for one in pair)

    def copy(self, source: int, target: int) -> None:
        """Copy a page to another."""
        for kept in (one for pair in self.layers.values() for one in pair):
            kept[target * PAGE : (target + 1) * PAGE] = kept[source * PAGE : (source + 1) * PAGE]

    def step(self, feeds: Sequence[Feed]) -> Tensor:
        """One pass over the new tokens of all, one after the other."""
        device = self.loaded.device
        groups = self._groups(feeds)
        with attending(_Attend(self, groups)), autocast(self.loaded):
            out = self.loaded.model(
                input_ids=torch.tensor([[token for feed in feeds for token in feed.tokens]], device=device),
                position_ids=torch.cat([group.place_BT.flatten() for group in groups])[None],
                logits_to_keep=_wanted(feeds).to(device),
                use_cache=False,
            )
        found: Tensor = out.logits[0].float()
        return found

    def _groups(self, feeds: Sequence[Feed]) -> list["_Group"]:
        """Feeds side by side that have one row each go together."""
        device, groups, at = self.loaded.device, list[list[Feed]](), 0
        for feed in feeds:
            if groups and len(feed.tokens) == len(groups[-1][-1].tokens) == 1:
                groups[-1].append(feed)
            else:
                groups.append([feed])
        found = []
        for group in groups:
            rows = len(group) * len(group[0].tokens)
            found.append(_Group.of(group, slice(at, at + rows), device))
            at += rows
        return found

    def kept(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, of the shape that its first tokens show."""
        if layer not in self.layers:
            self.layers[layer] = tuple(one.new_zeros(self.slots, one.shape[1], one.shape[3]) for one in (key, value))  # type: ignore[assignment]
        return self.layers[layer]


@dataclass(frozen=True)
class _Group:
    """Feeds of the same number of rows."""

    rows: slice
    place_BT: Tensor
    """Positions of the new tokens."""
    slot_BL: Tensor
    """Where the sequences' tokens are kept, from position 0 on."""

    @classmethod
    def of(cls, feeds: Sequence[Feed], rows: slice, device: torch.device) -> Self:
        count, longest = len(feeds[0].tokens), max(feed.start for feed in feeds) + len(feeds[0].tokens)
        place_BT = torch.tensor([feed.start for feed in feeds])[:, None] + torch.arange(count)
        most = -(-longest // PAGE)
        table_BP = torch.tensor([[*feed.pages, *[0] * (most - len(feed.pages))] for feed in feeds])
        slot_BL = (table_BP[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1)[:, :longest]
        return cls(rows, place_BT.to(device), slot_BL.to(device))

    @property
    def own(self) -> Tensor:
        """int64 [B T]: where the new tokens go."""
        return self.slot_BL.gather(1, self.place_BT).flatten()

    def hidden(self, window: int | None) -> Tensor:
        """bool [B, 1, 1, T, L]: positions that a token may not see."""
        position, place = torch.arange(self.slot_BL.shape[1], device=self.slot_BL.device), self.place_BT[..., None]
        beyond = position > place if window is None else (position > place) | (position <= place - window)
        return beyond[:, None, None]


class _Attend:
    """Attention of a step."""

    def __init__(self, decoding: GenericDecoding, groups: list[_Group]) -> None:
        self.decoding, self.groups = decoding, groups
        self.own_R = torch.cat([group.own for group in groups])

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        keys, values = self.decoding.kept(layer, key, value)
        keys[self.own_R], values[self.own_R] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        return torch.cat([self._attend(group, query, keys, values, shape) for group in self.groups], 2)

    def _attend(self, group: _Group, query: Tensor, keys: Tensor, values: Tensor, shape: Shape) -> Tensor:
        """Output [1, H, B T, D] of a group's rows."""
        (many, count), heads, groups = group.place_BT.shape, query.shape[1], keys.shape[1]
        mine = query[0, :, group.rows].view(groups, heads // groups, many, count, -1).permute(2, 0, 1, 3, 4)
        key, value = (kept[group.slot_BL].transpose(1, 2)[:, :, None] for kept in (keys, values))
        score = (mine @ key.transpose(3, 4)).float() * shape.scale
        if shape.softcap is not None:
            score = torch.tanh(score / shape.softcap) * shape.softcap
        weight = score.masked_fill_(group.hidden(shape.window), float("-inf")).softmax(-1).to(value.dtype)
        return (weight @ value).permute(1, 2, 0, 3, 4).reshape(1, heads, many * count, -1)


def _wanted(feeds: Sequence[Feed]) -> Tensor:
    """int64 [B]: rows whose logits are asked for."""
    end, found = 0, []
    for feed in feeds:
        end += len(feed.tokens)
        if feed.wanted:
            found.append(end - 1)
    return torch.tensor(found, dtype=torch.int64)
