"""Causal attention over a forest: each node attends to its ancestors and itself, path by path, nothing padded.

Scores are products of a path's own queries with the keys of the whole path, the heads of a group stacked so that keys and
values are never repeated. The backward is written out, since its scatters are sums over slices rather than over indices.
`forest_attention` takes queries, keys and values as a model's own layer hands them over; `rotary_attention` takes the joint projection
of a fused layer, and turns it to its positions in place first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import native


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
    if shape.softcap is not None or not native.serves(joint_TP):
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
        out = torch.empty_like(query_HND)
        weights = _attend(query_HND, key_KND, value_KND, out, paths, shape, any(ctx.needs_input_grad))
        ctx.paths, ctx.shape = paths, shape
        ctx.save_for_backward(query_HND, key_KND, value_KND, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_HND, key_KND, value_KND, *weights = ctx.saved_tensors
        d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in (query_HND, key_KND, value_KND))
        _attend_backward(
            grads[0], query_HND, key_KND, value_KND, weights, ctx.paths, ctx.shape, (d_query, d_key, d_value)
        )
        return d_query, d_key, d_value, None, None


class _RotaryAttention(torch.autograd.Function):
    """The same on the columns of one matrix, whose gradient is again one matrix."""

    @staticmethod
    def forward(
        ctx: Any, joint_TP: Tensor, cosine_TR: Tensor, sine_TR: Tensor, heads: Heads, paths: tuple[Path, ...], shape: Shape, room: int
    ) -> Tensor:  # fmt: skip
        joint_TP = joint_TP.data  # what made it does not read it again
        rotate(joint_TP, cosine_TR, sine_TR, heads)
        width = heads.count * heads.width
        out_TW = joint_TP.new_empty(len(joint_TP), width + room)
        out_TW[:, width:] = 0
        out_HTD = out_TW[:, :width].view(len(joint_TP), heads.count, heads.width).transpose(0, 1)
        query, key, value = heads.split(joint_TP)
        weights = _attend(query, key, value, out_HTD, paths, shape, any(ctx.needs_input_grad))
        ctx.heads, ctx.paths, ctx.shape = heads, paths, shape
        ctx.save_for_backward(joint_TP, cosine_TR, sine_TR, *weights)
        return out_TW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        joint_TP, cosine_TR, sine_TR, *weights = ctx.saved_tensors
        heads = ctx.heads
        grad_TD = grads[0][:, : heads.count * heads.width]
        grad_HTD = grad_TD.view(len(grad_TD), heads.count, heads.width).transpose(0, 1)
        d_joint_TP = torch.empty_like(joint_TP)
        query, key, value = heads.split(joint_TP)
        _attend_backward(grad_HTD, query, key, value, weights, ctx.paths, ctx.shape, heads.split(d_joint_TP))
        rotate(d_joint_TP, cosine_TR, sine_TR, heads, -1.0)
        return d_joint_TP, None, None, None, None, None, None


def _attend(
    query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, out_HND: Tensor, paths: Sequence[Path], shape: Shape, keep: bool
) -> list[Tensor]:  # fmt: skip
    """Fill `out_HND`; the attention weights [K, G * n, L] of each path with nodes of its own, if they are to be kept."""
    groups, weights = key_KND.shape[0], []
    for path in paths:
        own = path.stop - path.start
        if own == 0:
            continue
        key, value = _gather(key_KND, path), _gather(value_KND, path)
        weight = torch.bmm(_stack(query_HND, path, groups), key.transpose(1, 2))
        _softmax(weight, own, shape)
        attended = torch.bmm(weight, value)
        out_HND[:, path.start : path.stop] = attended.view(query_HND.shape[0], own, -1)
        if keep:
            weights.append(weight)
    return weights


def _softmax(score: Tensor, own: int, shape: Shape) -> None:
    """Scores [K, G * n, L] become weights, in place."""
    groups, rows, length = score.shape
    if native.serves(score):
        window = length if shape.window is None else shape.window
        native.run("causal_softmax", score.dtype, score, groups * rows, own, length, window, shape.scale)
        return
    hidden = _hidden(own, length, shape.window, score.device)
    scaled = score.view(groups, -1, own, length).float().mul_(shape.scale)
    score.view(groups, -1, own, length).copy_(scaled.masked_fill_(hidden, float("-inf")).softmax(-1))


def _softmax_backward(grad: Tensor, weight: Tensor, own: int, shape: Shape) -> Tensor:
    """Gradient of the scores before scaling, from that of the weights; may reuse its memory."""
    if native.serves(grad):
        groups, rows, length = grad.shape
        window = length if shape.window is None else shape.window
        native.run("causal_softmax_backward", grad.dtype, grad, weight, groups * rows, own, length, window, shape.scale)
        return grad
    exact = grad.float()
    return exact.sub_((exact * weight).sum(-1, keepdim=True)).mul_(weight).mul_(shape.scale).to(weight.dtype)


def _attend_backward(
    grad_HND: Tensor, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, weights: Sequence[Tensor], paths: Sequence[Path],
    shape: Shape, into: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Fill the gradients of queries, keys and values; those of shared nodes are summed in float32."""
    groups, heads = key_KND.shape[0], query_HND.shape[0]
    d_query, d_key, d_value = into
    sum_key, sum_value = (torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (key_KND, value_KND))
    owning = [path for path in paths if path.stop > path.start]
    for path, weight in zip(owning, weights, strict=True):
        own = path.stop - path.start
        key, value = _gather(key_KND, path), _gather(value_KND, path)
        query, grad = _stack(query_HND, path, groups), _stack(grad_HND, path, groups)
        d_score = _softmax_backward(torch.bmm(grad, value.transpose(1, 2)), weight, own, shape)
        d_query[:, path.start : path.stop] = torch.bmm(d_score, key).view(heads, own, -1)
        _scatter(sum_key, torch.bmm(d_score.transpose(1, 2), query), path)
        _scatter(sum_value, torch.bmm(weight.transpose(1, 2), grad), path)
    d_key.copy_(sum_key)
    d_value.copy_(sum_value)


def _scatter(into_KND: Tensor, part_KLD: Tensor, path: Path) -> None:
    """Add a path's gradient to its nodes."""
    at = 0
    for start, stop in path.path:
        into_KND[:, start:stop] += part_KLD[:, at : at + stop - start]
        at += stop - start
