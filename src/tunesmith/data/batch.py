"""Batch: the rows of a step as a forest, one flat sequence in which every distinct prefix stands once."""

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .example import Row

Slice = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """The nodes that one sequence adds to the forest, and the way from its root down to them."""

    start: int
    """First node it owns; a sequence owns the nodes that no earlier one has."""
    stop: int
    """One past its last node."""
    path: tuple[Slice, ...]
    """Runs of nodes from the root to its end; the last run is its own, unless that is empty."""


@dataclass(frozen=True)
class Forest:
    """Token sequences as a trie laid out flat: N nodes, S sequences."""

    tokens_N: Tensor
    """int64: token of each node."""
    depth_N: Tensor
    """int64: position of each node in its sequences."""
    segments: tuple[Segment, ...]
    """One per sequence, in order."""

    def to(self, device: torch.device) -> "Forest":
        """The same on a device."""
        return Forest(self.tokens_N.to(device), self.depth_N.to(device), self.segments)

    def behind(self, tokens: Many[int]) -> "Forest":
        """The same with tokens that all sequences begin with."""
        count = len(tokens)
        if not count:
            return self
        first = torch.tensor(tokens, dtype=self.tokens_N.dtype, device=self.tokens_N.device)
        segments = []
        for number, one in enumerate(self.segments):
            (_, end), *rest = [(start + count, stop + count) for start, stop in one.path]
            lowest = one.path[0][0]
            path = ((0, end), *rest) if not lowest else ((0, count), (lowest + count, end), *rest)
            segments.append(Segment(0 if number == 0 else one.start + count, one.stop + count, path))
        depth_N = torch.cat([torch.arange(count, device=self.depth_N.device), self.depth_N + count])
        return Forest(torch.cat([first, self.tokens_N]), depth_N, tuple(segments))

    def nodes(self, sequence: int) -> Tensor:
        """int64 [T]: the node of each position of a sequence."""
        return torch.cat([torch.arange(a, b) for a, b in self.segments[sequence].path])


def grow(sequences: Many[np.ndarray], share: bool = True) -> Forest:
    """Lay out token sequences (int arrays, none empty) such that each distinct prefix stands once, or, if told so, each sequence whole."""
    segments: list[Segment] = []
    tokens: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    count = 0
    for number, sequence in enumerate(sequences):
        shared, relative = 0, -1
        for other in range(number if share else 0):
            common = common_prefix(sequence, sequences[other])
            if common > shared:
                shared, relative = common, other
        path = _cut(segments[relative].path, shared) if shared else ()
        own = len(sequence) - shared
        if own:
            path = (*path, (count, count + own))
            tokens.append(sequence[shared:])
            depths.append(np.arange(shared, len(sequence)))
        segments.append(Segment(count, count + own, path))
        count += own
    tokens_N, depth_N = (torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in (tokens, depths))
    return Forest(tokens_N, depth_N, tuple(segments))


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """How many tokens two sequences share from their start."""
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return int(differs[0]) if len(differs) else length


def _cut(path: tuple[Slice, ...], length: int) -> tuple[Slice, ...]:
    """The first `length` nodes of a path."""
    kept: list[Slice] = []
    for start, stop in path:
        if length <= 0:
            break
        kept.append((start, min(stop, start + length)))
        length -= stop - start
    return tuple(kept)


@dataclass(frozen=True)
class Batch:
    """What an objective sees: a forest and, for each of M supervised tokens, where it is predicted and to which sequence it belongs."""

    forest: Forest
    source_M: Tensor
    """int64: the node whose logits predict the token."""
    target_M: Tensor
    """int64: the token."""
    sequence_M: Tensor
    """int64: the sequence it is in."""
    row_S: Tensor
    """int64: the row each sequence belongs to."""
    columns: dict[str, Tensor]
    """float32 [R] each: named numbers per row."""
    token_columns: dict[str, Tensor]
    """[M, ...] each: what is known of each supervised token."""
    origins: tuple[str, ...]
    """`file:line` of each row."""
    tokens: int
    """Tokens of the rows as they were given, before prefixes were shared; what speed is counted in."""

    @property
    def supervised(self) -> int:
        """M, the count of supervised tokens."""
        return len(self.target_M)

    @property
    def distinct(self) -> int:
        """N, the count of tokens that are computed: a shared prefix counts once."""
        return self.forest.tokens_N.numel()

    def per_sequence(self, values_M: Tensor) -> Tensor:
        """Sums [S] over the supervised tokens of each sequence, in float32; differentiable."""
        sums_S = values_M.new_zeros(len(self.row_S), dtype=torch.float32)
        return sums_S.index_add(0, self.sequence_M.to(values_M.device), values_M.float())

    def to(self, device: torch.device) -> "Batch":
        """The same with what a forward pass reads on a device."""
        forest, source_M, target_M = self.forest.to(device), self.source_M.to(device), self.target_M.to(device)
        return replace(self, forest=forest, source_M=source_M, target_M=target_M)

    def once(self) -> tuple["Batch", Tensor | None]:
        """The same with each token that is predicted at a node named once, and which of these each supervised token is, int64 [M]; None where all differ.

        Answers that begin alike, such as a chosen and a rejected one, have the same tokens predicted at the same nodes. `sequence_M` and columns stay those of the M tokens.
        """
        if not self.supervised:
            return self, None
        tokens = int(self.target_M.max()) + 1
        pair_P, back_M = torch.unique(self.source_M * tokens + self.target_M, return_inverse=True)
        if len(pair_P) == self.supervised:
            return self, None
        return replace(self, source_M=pair_P // tokens, target_M=pair_P % tokens), back_M

    def at_ends(self) -> "Batch":
        """The same with one thing to be read of each sequence: what is said at its last token, where nothing follows."""
        ends = [segment.path[-1][1] - 1 for segment in self.forest.segments]
        source_S, sequence_S = torch.tensor(ends), torch.arange(len(ends))
        return replace(
            self, source_M=source_S, sequence_M=sequence_S, target_M=torch.zeros_like(source_S), token_columns={}
        )

    def behind(self, tokens: Many[int]) -> "Batch":
        """The same with tokens that all sequences begin with; nothing of them is learnt."""
        return replace(self, forest=self.forest.behind(tokens), source_M=self.source_M + len(tokens))

    @classmethod
    def of(cls, rows: Many[Row], share: bool = True) -> "Batch":
        """Pack rows; each keeps its own supervised tokens even where its prefix is shared."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        forest = grow([sequence.tokens for sequence in sequences], share)
        sources, targets, owners = [], [], []
        for number, sequence in enumerate(sequences):
            learnt = torch.from_numpy(np.flatnonzero(sequence.learn))
            sources.append(forest.nodes(number)[learnt - 1])
            targets.append(torch.from_numpy(sequence.tokens.astype(np.int64))[learnt])
            owners.append(torch.full_like(learnt, number))
        names = sorted({name for row in rows for name in row.columns})
        token_names = sorted({name for sequence in sequences for name in sequence.columns})
        return cls(
            forest=forest,
            source_M=torch.cat(sources),
            target_M=torch.cat(targets),
            sequence_M=torch.cat(owners),
            row_S=torch.tensor([number for number, row in enumerate(rows) for _ in row.sequences]),
            columns={name: torch.tensor([row.columns[name] for row in rows], dtype=torch.float32) for name in names},
            token_columns={
                name: torch.from_numpy(np.concatenate([sequence.columns[name] for sequence in sequences]))
                for name in token_names
            },
            origins=tuple(row.origin for row in rows),
            tokens=sum(len(sequence) for sequence in sequences),
        )


def distinct(batches: Many[Batch]) -> int:
    """Tokens that one batch of all their rows would compute, a shared prefix once: the same however rows are cut into batches, and whether these share."""
    forests = [batch.forest for batch in batches]
    whole = [one.tokens_N[one.nodes(number)].numpy() for one in forests for number in range(len(one.segments))]
    whole.sort(key=np.ndarray.tobytes)  # what begins alike stands together
    return sum(len(one) - common_prefix(before, one) for before, one in pairwise([whole[0][:0], *whole]))
