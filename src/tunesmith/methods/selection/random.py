"""Rows drawn at random: what any other way to choose has to be better than."""

from typing import Literal

import numpy as np

from .base import Chosen, Pool, Selector


class Random(Selector):
    """Any rows, each as likely as any other. A smaller choice by the same seed is part of a larger one."""

    kind: Literal["random"] = "random"

    def choose(self, pool: Pool, count: int, seed: int) -> Chosen:
        """The first ones of a shuffled list."""
        return Chosen(np.random.default_rng(seed).permutation(len(pool.rows))[:count])
