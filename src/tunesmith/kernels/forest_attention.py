"""Causal attention over a forest: each node attends to its ancestors and itself, path by path, nothing padded.

Scores are products of a path's own queries with the keys of the whole path, the heads of a group stacked so that keys and
values are never repeated. The backward is written out, since its scatters are sums over slices rather than over indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


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
    """Attention output [H, N, D] of queries [H, N, D] over keys and values [K, N, D], H a multiple of K."""
    if shape.softcap is not None:
        return reference(query_HND, key_KND, value_KND, paths, shape)
    out: Tensor = _ForestAttention.apply(query_HND, key_KND, value_KND, tuple(paths), shape)  # type: ignore[no-untyped-call]
    return out


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


def _gather(nodes_KND: Tensor, path: Path) -> Tensor:
    """[K, L, D]: a path's nodes, without a copy where they stand together."""
    parts = [nodes_KND[:, a:b] for a, b in path.path]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _stack(nodes_HND: Tensor, path: Path, groups: int) -> Tensor:
    """[K, G * n, D]: a path's own nodes with the query heads that share a key head stacked."""
    own = nodes_HND[:, path.start : path.stop]
    return own.reshape(groups, -1, own.shape[-1])


class _ForestAttention(torch.autograd.Function):
    """Forward keeps the attention weights; backward reuses them."""

    @staticmethod
    def forward(
        ctx: Any, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, paths: tuple[Path, ...], shape: Shape
    ) -> Tensor:
        groups, out = key_KND.shape[0], torch.empty_like(query_HND)
        keep = any(ctx.needs_input_grad)
        weights = []
        for path in paths:
            own = path.stop - path.start
            if own == 0:
                continue
            key, value = _gather(key_KND, path), _gather(value_KND, path)
            score = torch.bmm(_stack(query_HND, path, groups), key.transpose(1, 2))
            score = score.view(groups, -1, own, key.shape[1])
            hidden = _hidden(own, key.shape[1], shape.window, score.device)
            weight = score.float().mul_(shape.scale).masked_fill_(hidden, float("-inf")).softmax(-1).to(value.dtype)
            weight = weight.view(groups, -1, key.shape[1])
            out[:, path.start : path.stop] = torch.bmm(weight, value).view(query_HND.shape[0], own, -1)
            if keep:
                weights.append(weight)
        ctx.paths, ctx.shape = [path for path in paths if path.stop > path.start], shape
        ctx.save_for_backward(query_HND, key_KND, value_KND, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_HND,) = grads
        query_HND, key_KND, value_KND, *weights = ctx.saved_tensors
        groups, heads = key_KND.shape[0], query_HND.shape[0]
        d_query = torch.empty_like(query_HND)
        d_key, d_value = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (key_KND, value_KND))
        for path, weight in zip(ctx.paths, weights, strict=True):
            key, value = _gather(key_KND, path), _gather(value_KND, path)
            query, grad = _stack(query_HND, path, groups), _stack(grad_HND, path, groups)
            d_weight = torch.bmm(grad, value.transpose(1, 2)).float()
            d_weight.sub_((d_weight * weight).sum(-1, keepdim=True)).mul_(weight).mul_(ctx.shape.scale)
            d_score = d_weight.to(key.dtype)
            d_query[:, path.start : path.stop] = torch.bmm(d_score, key).view(heads, path.stop - path.start, -1)
            _scatter(d_key, torch.bmm(d_score.transpose(1, 2), query), path)
            _scatter(d_value, torch.bmm(weight.transpose(1, 2), grad), path)
        return d_query, d_key.to(key_KND.dtype), d_value.to(value_KND.dtype), None, None


def _scatter(into_KND: Tensor, part_KLD: Tensor, path: Path) -> None:
    """Add a path's gradient to its nodes."""
    at = 0
    for start, stop in path.path:
        into_KND[:, start:stop] += part_KLD[:, at : at + stop - start]
        at += stop - start
