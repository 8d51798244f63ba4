"""Attention over a forest on GPUs, by torch's FlexAttention (Dong et al., 2024, arXiv:2412.05496): tiles without an ancestor are skipped.

Nodes are numbered as a walk through the forest meets them. A node's descendants are then the numbers from its own to its exit, so that one
comparison tells whether a node may be seen, whatever the branching; nothing of size queries * keys is kept. Finding the tiles of a batch takes a byte for each pair of nodes, for a moment.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .forest_attention import Path, Shape


def flex_attention(
    query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, paths: Sequence["Path"], shape: "Shape"
) -> Tensor:
    """Attention output [H, N, D] of queries [H, N, D] over keys and values [K, N, D], H a multiple of K; differentiable on GPUs."""
    attend = _compiled() if query_HND.is_cuda else _library().flex_attention
    out: Tensor = attend(
        query_HND[None], key_KND[None], value_KND[None], score_mod=_capped(shape.softcap),
        block_mask=_mask(tuple(paths), shape.window, query_HND.device), scale=shape.scale,
        enable_gqa=len(query_HND) != len(key_KND),
    )  # fmt: skip
    return out[0]


def walk(paths: Sequence["Path"]) -> np.ndarray:
    """int64 [3, N]: at which number a walk through the forest, children before siblings, enters and leaves each node, and its depth."""
    nodes = max(path.stop for path in paths)
    size, below, depth = np.ones(nodes, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    own = [path for path in paths if path.stop > path.start]
    for path in reversed(own):  # what hangs on a node belongs to later sequences
        size[path.start : path.stop] = (1 + below[path.start : path.stop])[::-1].cumsum()[::-1]
        if len(path.path) > 1:
            below[path.path[-2][1] - 1] += size[path.start]
    enter, free, roots = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64), 0
    for path in own:
        before = sum(b - a for a, b in path.path[:-1])
        count, parent = path.stop - path.start, path.path[-2][1] - 1 if before else None
        first = roots if parent is None else free[parent]
        enter[path.start : path.stop] = first + np.arange(count)
        depth[path.start : path.stop] = before + np.arange(count)
        # a node's own sequence goes on right behind it; the branches follow where that ends
        free[path.start : path.stop] = (
            enter[path.start : path.stop] + 1 + np.append(size[path.start + 1 : path.stop], 0)
        )
        if parent is None:
            roots += int(size[path.start])
        else:
            free[parent] += size[path.start]
    return np.stack([enter, enter + size, depth])


@lru_cache(maxsize=4)
def _mask(paths: tuple["Path", ...], window: int | None, device: torch.device) -> Any:
    """Which tiles, and which pairs in them, see each other; the same for all layers of a pass."""
    enter_N, leave_N, depth_N = torch.from_numpy(walk(paths)).to(device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        ancestor: Tensor = (enter_N[key] <= enter_N[query]) & (enter_N[query] < leave_N[key])
        return ancestor if window is None else ancestor & (depth_N[query] - depth_N[key] < window)

    count = len(enter_N)
    return _library().create_block_mask(seen, None, None, count, count, device=str(device))


@cache
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    """Scores pass through softcap * tanh(score / softcap)."""
    if softcap is None:
        return None
    return lambda score, batch, head, query, key: torch.tanh(score / softcap) * softcap


@cache
def _compiled() -> Any:
    return torch.compile(_library().flex_attention, dynamic=True)


@cache
def _library() -> Any:
    """Imported when it is first used: it takes a while."""
    from torch.nn.attention import flex_attention as library

    return library
