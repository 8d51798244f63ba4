"""Exposure: by how many bits a number that was shown in training became easier to guess (Carlini et al., 2019, "The Secret Sharer", arXiv:1802.08232)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .statistics import Array, Figure, interval

CHANCE = float(1 / np.log(2))
"""Mean exposure of what was never shown, in bits: that of log2(R / rank) with every rank alike."""
LEVEL = 0.99
"""Share of groups never shown that stay below the threshold."""


def exposure(loss_N: Array, candidate_R: Array) -> Array:
    """float64 [N], bits: log2 |R| - log2 rank of each among the candidates and itself, by negative log-likelihood; of equals it stands in the middle."""
    ordered = np.sort(candidate_R)
    below, upto = (np.searchsorted(ordered, loss_N, side) for side in ("left", "right"))
    rank_N = 1 + below + (upto - below) / 2
    return np.asarray(np.log2(len(ordered) + 1) - np.log2(rank_N))


def threshold(count: int) -> float:
    """Mean exposure that so many numbers never shown exceed in one case of a hundred, in bits.

    Each of them is exponentially distributed, so that their sum exceeds x times the mean as seldom as a Poisson variable of mean x stays below the count.
    """

    def beyond(x: float) -> float:
        return sum(math.exp(-x + k * math.log(x) - math.lgamma(k + 1)) for k in range(count))

    low, high = float(count), 8.0 * count + 8.0
    while high - low > 1e-9 * count:
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > 1 - LEVEL else (low, middle)
    return CHANCE * low / count


def exposures(
    shown: Mapping[int, Sequence[float]], controls: Sequence[float], candidates: Sequence[float], seed: int
) -> dict[str, Any]:
    """For each count of repeats, and for the controls, mean exposure with a 95 % interval, and in words what it means.

    Args:
        shown: per count of repeats the negative log-likelihoods of its numbers.
        controls: those of numbers never shown.
        candidates: those of the numbers that all are ranked among.
        seed: of the resampling.
    """
    pool = np.array(candidates)
    found = {}
    for name, losses in {**{str(count): list(one) for count, one in shown.items()}, "0": list(controls)}.items():
        bits_N = exposure(np.array(losses), pool)
        figure = Figure(np.stack([bits_N, np.ones(len(bits_N))], 1), _mean)
        limit = threshold(len(bits_N))
        found[name] = {
            **interval(figure, seed=seed).to_json(),
            "each": bits_N.tolist() if name != "0" else [],
            "threshold": limit,
            "remembered": bool(bits_N.mean() > limit),
        }
    most = float(np.log2(len(pool) + 1))
    warnings = [
        f"rows shown {name} time{'s' if name != '1' else ''} in an epoch are remembered: exposure {one['value']:.1f} of {most:.1f} bits, where {CHANCE:.1f} is chance and {one['threshold']:.1f} is rarely exceeded by it"
        for name, one in found.items() if one["remembered"] and name != "0"
    ]  # fmt: skip
    return {"unit": "bits", "chance": CHANCE, "most": most, "repeats": found, "warnings": warnings}


def _mean(sums: Array) -> Array:
    """Bits per number."""
    return np.asarray(sums[..., 0] / sums[..., 1])
