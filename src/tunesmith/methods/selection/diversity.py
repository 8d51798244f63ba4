"""Rows that leave no other far from a chosen one: k-center greedy (Gonzalez, 1985; Sener and Savarese, 2018, arXiv:1708.00489) on embeddings."""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Example
from tunesmith.data.retrieval.embedding import Embedding

from .base import Chosen, Places, Pool, Selector


class Diversity(Selector):
    """Rows that ask unlike things: each one taken is that whose prompt is farthest from all taken before. It covers the margins of the data, oddities included."""

    kind: Literal["diversity"] = "diversity"
    embedding: Literal["auto", "minilm", "svd"] = "auto"
    """What prompts are compared by: `minilm`, sentence embeddings of the first 256 word pieces (extra `rag`); `svd`, TF-IDF reduced to 128 directions; `auto`
    takes minilm where it is installed. The summary names what it came to."""

    def settled(self) -> Self:
        """With `auto` decided."""
        return self.model_copy(update={"embedding": Embedding(model=self.embedding).settled().model})

    def choose(self, pool: Pool, count: int, seed: int) -> Chosen:
        """Distances are those between embeddings of length 1, from 0 to 2."""
        index = Embedding(model=self.embedding).index([_asked(example) for example in pool.examples])
        assert index.vectors_ND is not None
        places, radius = k_center(index.vectors_ND, count, int(np.random.default_rng(seed).integers(len(pool.rows))))
        return Chosen(places, {"embedding": index.about, "farthest_row": round(radius, 4)})


def k_center(vectors_ND: NDArray[np.float64], count: int, first: int) -> tuple[Places, float]:
    """`count` of N vectors, each the farthest from those before, of equals the earlier one; and how far from them the farthest of the others is.

    No choice of as many vectors leaves the farthest at less than half that distance.
    """
    places = [first]
    squared_N = _squared(vectors_ND, first)
    while len(places) < count:
        squared_N[places[-1]] = -1.0  # taken, even where others stand in the same place
        places.append(int(squared_N.argmax()))
        squared_N = np.minimum(squared_N, _squared(vectors_ND, places[-1]))
    return np.array(places), float(np.sqrt(max(0.0, squared_N.max())))


def _squared(vectors_ND: NDArray[np.float64], place: int) -> NDArray[np.float64]:
    """Squared distances [N] to one of them."""
    apart_ND = vectors_ND - vectors_ND[place]
    return np.asarray(np.einsum("nd,nd->n", apart_ND, apart_ND))


def _asked(example: Example) -> str:
    """What is compared: the prompt, or the whole of a plain text."""
    if example.text is not None:
        return example.text
    return "\n".join(str(message.get("content") or "") for message in example.prompt)
