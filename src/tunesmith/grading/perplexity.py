"""Perplexity: the exponential of the mean negative log-likelihood per supervised token."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tunesmith.base import DataError
from tunesmith.data.example import Example

from .base import HEADLINE, Grader, Likelihood, Reads
from .statistics import Array, Figure


class Perplexity(Grader):
    """Perplexity over the tokens of all rows; comparable only between models with the same tokenizer."""

    kind: Literal["perplexity"] = "perplexity"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    unit: ClassVar[str] = "perplexity"
    digits: ClassVar[int] = 2
    reads: ClassVar[Reads] = "likelihoods"
    least: ClassVar[float] = 1.0

    def figures(self, examples: Sequence[Example], outputs: Sequence[Likelihood]) -> dict[str, Figure]:
        """The ratio of summed losses to summed tokens, inside the exponential."""
        sums_N2 = np.array([(output.loss, output.tokens) for output in outputs], dtype=np.float64)
        if not sums_N2[:, 1].any():
            raise DataError(
                f"{examples[0].origin}: no supervised token in {len(examples)} rows; perplexity needs at least one"
            )
        return {HEADLINE: Figure(sums_N2, perplexity, least=self.least)}


def perplexity(sums: Array) -> Array:
    """From sums [..., 2] of losses (nats) and tokens; NaN where there is no token, infinite where the loss is."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(np.exp(sums[..., 0] / sums[..., 1]))
