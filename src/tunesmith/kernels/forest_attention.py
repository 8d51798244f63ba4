"""Causal attention over a forest: each node attends to its ancestors and itself, path by path, nothing padded.

Compiled, it goes by tiles and keeps nothing of size queries * keys (`native/attention.h`, on GPUs `flex.py`); `reference` says the same in plain
operations.
`forest_attention` takes queries, keys and values as a model's own layer hands them over; `rotary_attention` takes the joint projection
of a fused layer, and turns it to its positions in place first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from . import native
from .arena import kept
from .flex import flex_attention

KEYS, DEEP = 64, 16
"""Keys of a tile, and what the kernel rounds a head's width up to at most."""


class Path(Protocol):
    """A sequence's own nodes and the runs of nodes from its root down to them (`tunesmith.data.batch.Segment`)."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def path(self) -> tuple[tuple[int, int], ...]: ...


@dataclass(frozen=True)
class Shape:
    """What a layer's attention is like besides being causal."""

    scale: float
    window: int | None = None
    """A node sees this many positions back, itself included; None sees all."""
    softcap: float | None = None
    """Scores pass through softcap * tanh(score / softcap)."""


def forest_attention(
    query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, paths: Sequence[Path], shape: Shape
) -> Tensor:
    """Attention output [H, N, V] of queries [H, N, D] over keys [K, N, D] and values [K, N, V], H a multiple of K."""
    if query_HND.is_cuda and not native.plain():
        return flex_attention(query_HND, key_KND, value_KND, paths, shape)
    if (more := query_HND.shape[2] - value_KND.shape[2]) > 0:  # latent attention; zeros behind values come out as zeros
        return forest_attention(query_HND, key_KND, pad(value_KND, (0, more)), paths, shape)[..., :-more]
    if more < 0 or not native.serves(query_HND):
        return reference(query_HND, key_KND, value_KND, paths, shape)
    out: Tensor = _ForestAttention.apply(query_HND, key_KND, value_KND, tuple(paths), shape)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Heads:
    """How a joint projection [T, (count + 2 groups) width] divides into queries, keys and values."""

    count: int
    """Query heads."""
    groups: int
    """Key heads."""
    width: int

    def split(self, joint_TP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views [H, T, D], [K, T, D], [K, T, D] of a joint projection."""
        heads_HTD = joint_TP.view(len(joint_TP), -1, self.width).transpose(0, 1)
        query, key, value = torch.split(heads_HTD, [self.count, self.groups, self.groups])
        return query, key, value

    def columns(self, out_TW: Tensor) -> Tensor:
        """View [H, T, D] of an attention output's first columns."""
        return out_TW[:, : self.count * self.width].view(len(out_TW), self.count, self.width).transpose(0, 1)


def rotary_attention(
    joint_TP: Tensor, cosine_TR: Tensor, sine_TR: Tensor, heads: Heads, paths: Sequence[Path], shape: Shape, room: int
) -> Tensor:
    """Attention output [T, H D + room] of a joint projection [T, (H + 2 K) D], which is turned in place; zero beyond H D.

    Args:
        joint_TP: queries, keys and values side by side, contiguous.
        cosine_TR: float32, of the positions' angles, for the first R elements of a head.
        sine_TR: likewise.
        heads: how the projection divides.
        paths: of the forest.
        shape: of this layer's attention.
        room: free columns for a low-rank part (`joint_linear`).
    """
    if not native.serves(joint_TP):
        turned_HTD = rotate_reference(joint_TP, cosine_TR, sine_TR, heads)
        query, key = turned_HTD[: heads.count], turned_HTD[heads.count :]
        if not joint_TP.requires_grad:  # whoever keeps the keys takes them from there
            joint_TP[:, : len(turned_HTD) * heads.width] = turned_HTD.transpose(0, 1).flatten(1)
        out_HTD = forest_attention(query, key, heads.split(joint_TP)[2], paths, shape)
        return torch.nn.functional.pad(out_HTD.transpose(0, 1).flatten(1), (0, room))
    out: Tensor = _RotaryAttention.apply(joint_TP, cosine_TR, sine_TR, heads, tuple(paths), shape, room)  # type: ignore[no-untyped-call]
    return out


def rotate_reference(joint_TP: Tensor, cosine_TR: Tensor, sine_TR: Tensor, heads: Heads) -> Tensor:
    """Queries and keys [H + K, T, D] at their positions (Su et al., 2021, arXiv:2104.09864), by plain operations."""
    query, key, _ = heads.split(joint_TP)
    x_HTD, turned = torch.cat([query, key]).float(), cosine_TR.shape[1]
    left, right = x_HTD[..., :turned].chunk(2, -1)
    spun = x_HTD[..., :turned] * cosine_TR + torch.cat([-right, left], -1) * sine_TR
    return torch.cat([spun, x_HTD[..., turned:]], -1).to(joint_TP.dtype)


def rotate(joint_TP: Tensor, cosine_TR: Tensor, sine_TR: Tensor, heads: Heads, sign: float = 1.0) -> None:
    """The same in place; sign -1 turns back."""
    native.run(
        "rotate", joint_TP.dtype, joint_TP, joint_TP.shape[1], heads.count + heads.groups, heads.width, cosine_TR.shape[1],
        cosine_TR, sine_TR, sign, len(joint_TP),
    )  # fmt: skip


def reference(query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, paths: Sequence[Path], shape: Shape) -> Tensor:
    """The same by plain operations: the obvious twin, which autograd differentiates."""
    group = query_HND.shape[0] // key_KND.shape[0]
    pieces = []
    for path in paths:
        if path.start == path.stop:
            continue
        nodes = torch.cat([torch.arange(a, b, device=query_HND.device) for a, b in path.path])
        query_Hnd = query_HND[:, path.start : path.stop]
        key_HLd = key_KND[:, nodes].repeat_interleave(group, 0)
        value_HLd = value_KND[:, nodes].repeat_interleave(group, 0)
        score_HnL = query_Hnd @ key_HLd.transpose(1, 2) * shape.scale
        if shape.softcap is not None:
            score_HnL = torch.tanh(score_HnL / shape.softcap) * shape.softcap
        hidden_nL = _hidden(query_Hnd.shape[1], len(nodes), shape.window, query_HND.device)
        weight_HnL = score_HnL.float().masked_fill(hidden_nL, float("-inf")).softmax(-1).to(value_HLd.dtype)
        pieces.append(weight_HnL @ value_HLd)
    return torch.cat(pieces, 1)


def _hidden(own: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """bool [own, length]: which of a path's nodes each of its last `own` may not see."""
    row = torch.arange(length - own, length, device=device)[:, None]
    column = torch.arange(length, device=device)[None]
    hidden = column > row
    return hidden if window is None else hidden | (column <= row - window)


@dataclass(frozen=True)
class Layout:
    """Paths as the compiled kernel reads them (`attention.h`)."""

    paths: Tensor
    """int64 [P, 6]: own nodes from and to, its runs from and to, its length, and where it begins if each takes whole tiles."""
    runs: Tensor
    """int64 [R, 2]."""
    longest: int
    broad: int
    """Length of all paths in whole tiles of keys."""


@lru_cache(maxsize=16)
def layout(paths: tuple[Path, ...]) -> Layout:
    """Of the paths that own nodes."""
    fields: list[tuple[int, ...]] = []
    runs: list[tuple[int, int]] = []
    broad = 0
    for path in paths:
        if path.start == path.stop:
            continue
        length = sum(b - a for a, b in path.path)
        fields.append((path.start, path.stop, len(runs), len(runs) + len(path.path), length, broad))
        runs += path.path
        broad += -(-length // KEYS) * KEYS
    return Layout(torch.tensor(fields), torch.tensor(runs), max(one[4] for one in fields), broad)


def _strides(*tensors: Tensor) -> Tensor:
    """int64: steps from node to node and from head to head of tensors [H, N, D]."""
    return torch.tensor([step for tensor in tensors for step in (tensor.stride(1), tensor.stride(0))])


def _close(heads_HND: Tensor) -> Tensor:
    """With the elements of a head side by side, as the kernel wants them."""
    return heads_HND if heads_HND.stride(2) == 1 else heads_HND.contiguous()


def _attend(query: Tensor, key: Tensor, value: Tensor, out: Tensor, paths: tuple[Path, ...], shape: Shape) -> Tensor:
    """Fill `out` [H, N, D]; log-sum-exp [N, H] of each query's scores."""
    (heads, nodes, width), lay = query.shape, layout(paths)
    lse_NH = torch.empty(nodes, heads, device=query.device)
    native.run(
        "attention", query.dtype, query, key, value, out, _strides(query, key, value, out), lse_NH, lay.paths, lay.runs,
        len(lay.paths), heads, len(key), width, lay.longest, shape.window or nodes, shape.scale, shape.softcap or 0.0,
    )  # fmt: skip
    return lse_NH


def _attend_backward(
    grad: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], into: tuple[Tensor, Tensor, Tensor],
    paths: tuple[Path, ...], shape: Shape,
) -> None:  # fmt: skip
    """Fill the gradients of queries, keys and values; those of shared nodes are summed in float32."""
    query, key, value, out, lse_NH = saved
    (heads, nodes, width), lay = query.shape, layout(paths)
    part = torch.empty(lay.broad, len(key), 2, -(-width // DEEP) * DEEP, device=query.device)
    native.run(
        "attention_backward", query.dtype, query, key, value, out, grad, *into, _strides(query, key, value, out, grad, *into), lse_NH,
        part, lay.paths, lay.runs, len(lay.paths), nodes, heads, len(key), width, lay.longest, shape.window or nodes, shape.scale,
        shape.softcap or 0.0,
    )  # fmt: skip


class _ForestAttention(torch.autograd.Function):
    """Keeps one number a query and head; the backward computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, paths: tuple[Path, ...], shape: Shape
    ) -> Tensor:
        query, key, value = map(_close, (query_HND, key_KND, value_KND))
        out = torch.empty_like(query)
        lse_NH = _attend(query, key, value, out, paths, shape)
        ctx.paths, ctx.shape = paths, shape
        ctx.save_for_backward(query, key, value, out, lse_NH)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse_NH = ctx.saved_tensors
        into = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        _attend_backward(_close(grads[0]), (query, key, value, out, lse_NH), into, ctx.paths, ctx.shape)
        return *into, None, None


class _RotaryAttention(torch.autograd.Function):
    """The same on the columns of one matrix, whose gradient is again one matrix."""

    @staticmethod
    def forward(
        ctx: Any, joint_TP: Tensor, cosine_TR: Tensor, sine_TR: Tensor, heads: Heads, paths: tuple[Path, ...], shape: Shape, room: int
    ) -> Tensor:  # fmt: skip
        joint_TP = joint_TP.data  # what made it does not read it again
        rotate(joint_TP, cosine_TR, sine_TR, heads)
        out_TW = kept(joint_TP, len(joint_TP), heads.count * heads.width + room)
        out_TW[:, heads.count * heads.width :] = 0
        lse_TH = _attend(*heads.split(joint_TP), heads.columns(out_TW), paths, shape)
        ctx.heads, ctx.paths, ctx.shape = heads, paths, shape
        ctx.save_for_backward(joint_TP, cosine_TR, sine_TR, out_TW, lse_TH)
        return out_TW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        joint_TP, cosine_TR, sine_TR, out_TW, lse_TH = ctx.saved_tensors
        heads, d_joint_TP = ctx.heads, torch.empty_like(joint_TP)
        saved = (*heads.split(joint_TP), heads.columns(out_TW), lse_TH)
        _attend_backward(heads.columns(grads[0].contiguous()), saved, heads.split(d_joint_TP), ctx.paths, ctx.shape)
        rotate(d_joint_TP, cosine_TR, sine_TR, heads, -1.0)
        return d_joint_TP, None, None, None, None, None, None
